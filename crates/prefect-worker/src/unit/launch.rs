//! From the claim to infrastructure that runs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::deployment::Deployment;
use prefect_api::flow_run::FlowRunUpdate;
use prefect_api::id::{EventId, LeaseId};
use prefect_api::state::{Answer, NewState, State, StateType};
use serde_json::{Map, Value};
use tokio::time::Instant;
use uuid::Uuid;

use super::report::Told;
use super::{Launched, NOTHING_THERE, RETRY_MAX, Unit, entered_by};
use crate::error::chain;
use crate::events::Subject;
use crate::job::{self, JobError, Sources};
use crate::launcher::{Infrastructure, Job, LaunchError};
use crate::metrics::EndCause;
use crate::pool::Pool;
use crate::reconcile::PLACE_LABEL;
use crate::run_log::RunLog;
use crate::status::RunPhase;

/// Outages of server and engine that are shorter only delay a launch.
const PATIENCE: Duration = Duration::from_mins(30);

/// How often infrastructure that an engine has spoiled is made anew.
const MOST_SPOILED: u32 = 3;

/// For so long after a claim nobody takes it for that of a dead worker.
const FRESH: Duration = Duration::from_secs(15);

/// A run that is ours.
pub(super) struct Claim {
    /// The state that made it so.
    pending: NewState,
    /// When we got it.
    since: Instant,
    /// The lease on the deployment's concurrency slot, if it has a limit.
    pub(super) lease: Option<LeaseId>,
}

/// Why a run was not launched.
enum Unlaunched {
    /// It is to be cancelled.
    Cancelled,
    /// The worker stops.
    Stopping,
    /// It is not ours any more: others have put it into this state.
    Taken(StateType),
    /// Its deployment does not exist any more.
    Orphan(String),
    /// It cannot be: what went wrong, the text, and whether infrastructure made anew may do.
    Broken { kind: &'static str, text: String, is_spoiled: bool },
}

impl From<LaunchError> for Unlaunched {
    fn from(error: LaunchError) -> Self {
        Self::Broken { kind: error.kind(), text: chain(&error), is_spoiled: error.is_spoiled() }
    }
}

impl From<JobError> for Unlaunched {
    fn from(error: JobError) -> Self {
        let kind = match &error {
            JobError::Api(_) => "PrefectAPIError",
            JobError::Template(_) | JobError::Treatment(_) | JobError::Field { .. } => {
                "InvalidJobConfiguration"
            }
        };
        Self::Broken { kind, text: chain(&error), is_spoiled: false }
    }
}

impl Unit {
    /// Proposes PENDING, which at most one worker gets.
    pub(super) async fn claim(&self, log: &RunLog) -> Option<Claim> {
        let id = self.run.id;
        let mut pending = NewState::new(StateType::Pending);
        let claim = self.shared.fingerprint.claim();
        pending.state_details.transition_id = Some(claim);
        let ours = |state: &State| Claim {
            pending: pending.clone(),
            since: Instant::now(),
            lease: state.state_details.deployment_concurrency_lease_id,
        };
        match self.shared.client.set_flow_run_state(id, &pending, false).await {
            Ok(Answer::Accept(state)) if state.kind == StateType::Pending => return Some(ours(&state)),
            Ok(Answer::Reject { state: Some(state), .. }) if state.entered_by(&pending) => {
                return Some(ours(&state));
            }
            Ok(Answer::Accept(state) | Answer::Reject { state: Some(state), .. }) => {
                log.info(&not_pending(id, state.kind));
            }
            Ok(Answer::Abort { reason, .. } | Answer::Reject { state: None, reason }) => {
                log.info(&format!(
                    "Aborted submission of flow run '{id}'. Server sent an abort signal: {reason}"
                ));
            }
            Ok(Answer::Wait { reason, .. }) => {
                log.info(&format!("Aborted submission of flow run '{id}'. Server wants to wait: {reason}"));
            }
            Err(error) => {
                log.error(&format!("Failed to update state of flow run '{id}': {}", chain(&error)));
                // What is lost may be the answer only: then the run is ours, and nobody else will run it.
                if error.is_transient()
                    && let Some(run) = self.read_run().await
                    && entered_by(&run, &[claim])
                    && let Some(state) = &run.state
                {
                    return Some(ours(state));
                }
            }
        }
        None
    }

    /// Launches the claimed run. `Err` if it was not launched, and everybody who must know is told.
    pub(super) async fn launch(&self, claim: Claim, log: &RunLog) -> Result<Launched, EndCause> {
        let mut submitting = NewState::new(StateType::Pending).named("Submitting");
        // It takes the claim's place, so it has to tell as much.
        submitting.state_details.transition_id = Some(self.shared.fingerprint.claim());
        let proposals: Vec<Uuid> = [&claim.pending, &submitting]
            .into_iter()
            .filter_map(|state| state.state_details.transition_id)
            .collect();
        match Box::pin(self.try_launch(&submitting, &proposals, claim.since, log)).await {
            Ok(launched) => Ok(launched),
            Err(Unlaunched::Cancelled) => {
                self.set_cancelled(NOTHING_THERE, log).await;
                Err(EndCause::Cancelled)
            }
            Err(Unlaunched::Orphan(message)) => {
                self.set_cancelled(&message, log).await;
                Err(EndCause::Cancelled)
            }
            Err(Unlaunched::Stopping) => {
                self.hand_back(&proposals, "its worker is stopping", log).await;
                Err(EndCause::HandedBack)
            }
            Err(Unlaunched::Taken(kind)) => {
                log.info(&not_pending(self.run.id, kind));
                Err(EndCause::Taken)
            }
            Err(Unlaunched::Broken { kind, text, .. }) => {
                log.error(&format!(
                    "Failed to submit flow run '{}' to infrastructure: failed to {text}",
                    self.run.name
                ));
                let message =
                    format!("Failed to submit flow run to infrastructure: {kind}: failed to {text}");
                self.shared.metrics.launch_failed(kind);
                let told = self.set_crashed(&message, log).await;
                if told == Told::Outdated
                    && self.read_run().await.is_some_and(|run| run.state_type == Some(StateType::Cancelling))
                {
                    // A run that is being cancelled cannot crash any more.
                    self.set_cancelled(NOTHING_THERE, log).await;
                }
                Err(EndCause::LaunchFailed)
            }
        }
    }

    async fn try_launch(
        &self,
        submitting: &NewState,
        proposals: &[Uuid],
        claimed: Instant,
        log: &RunLog,
    ) -> Result<Launched, Unlaunched> {
        let shared = &self.shared;
        let pool = Arc::clone(&shared.pool.borrow());
        let deployment = self.deployment().await?;
        let make =
            self.patiently(|| self.make_job(deployment.as_ref(), &pool, proposals), JobError::is_transient);
        let (job, subject) = self.interruptible(make).await??;

        let submitted = shared.events.submitted(&subject).await;
        let prepare = self.patiently(|| shared.launcher.prepare(&job, log), LaunchError::is_transient);
        let introduce = self.propose_submitting(submitting);
        // Either may say that the run is not to be launched; a pull is not waited for then.
        let prepared = Box::pin(async {
            let began = Instant::now();
            prepare.await?;
            shared.metrics.prepared(&pool.record.name, began.elapsed());
            Ok(())
        });
        self.interruptible(async { tokio::try_join!(prepared, introduce) }).await??;

        if job.attempt.treatment.report_exit_state {
            // A program that does not report cannot wait either: a prefetched run starts at its time.
            self.interruptible(sleep_until(self.run.next_scheduled_start_time)).await?;
        }
        if claimed.elapsed() > FRESH {
            self.check_claim(proposals).await?;
        }
        self.entry.set_phase(RunPhase::Starting);
        let (infrastructure, created) = self.bring_up(&job, &subject, log).await?;
        shared.metrics.started(&pool.record.name, claimed.elapsed());
        let running = shared.events.container(&subject, &infrastructure, "running", created).await;
        Ok(Launched {
            infrastructure,
            attempt: job.attempt,
            subject: Some(subject),
            submitted: Some(submitted),
            last_event: running,
            adopted: false,
        })
    }

    /// Makes the infrastructure and starts it; gives the event of its creation, too. Infrastructure that a
    /// restart of the engine has spoiled in between is made anew.
    async fn bring_up(
        &self,
        job: &Job,
        subject: &Subject,
        log: &RunLog,
    ) -> Result<(Infrastructure, Option<EventId>), Unlaunched> {
        let mut left = MOST_SPOILED;
        loop {
            let infrastructure = self.create(job, subject).await?;
            self.entry.set_infrastructure(&infrastructure.name);
            let created = self.shared.events.container(subject, &infrastructure, "created", None).await;
            let Err(reason) = self.start(&infrastructure, log).await else {
                return Ok((infrastructure, created));
            };
            let reason = self.discard(&infrastructure, reason, log).await;
            if left == 0 || !matches!(reason, Unlaunched::Broken { is_spoiled: true, .. }) {
                return Err(reason);
            }
            left -= 1;
            tracing::warn!(flow_run.id = %self.run.id, infra.id = infrastructure.id, "spoiled by a restart of the engine, making it anew");
            // Should it have started all the same, then the run is not ours to start any more.
            self.check_claim(&job.attempt.proposals).await?;
        }
    }

    /// Much may have happened to the run during a long preparation, also that a worker of the same name, which
    /// took us for its former life, gave it back.
    async fn check_claim(&self, proposals: &[Uuid]) -> Result<(), Unlaunched> {
        let Some(run) = self.interruptible(self.read_run()).await? else {
            return Err(Unlaunched::Broken {
                kind: "FlowRunNotFound",
                text: "find the run: it was deleted".to_owned(),
                is_spoiled: false,
            });
        };
        match run.state_type {
            Some(StateType::Cancelling) => Err(Unlaunched::Cancelled),
            Some(kind) if !entered_by(&run, proposals) => Err(Unlaunched::Taken(kind)),
            _ => Ok(()),
        }
    }

    /// The deployment, if the run has one.
    async fn deployment(&self) -> Result<Option<Deployment>, Unlaunched> {
        let Some(id) = self.run.deployment_id else { return Ok(None) };
        let read = || async {
            match self.shared.client.read_deployment(id).await {
                Ok(deployment) => Ok(Some(deployment)),
                Err(error) if self.is_gone(&error).await => Ok(None),
                // A proxy whose server is away says 404 too: that passes.
                Err(error) => Err(JobError::Api(error)),
            }
        };
        let passes = |error: &JobError| match error {
            JobError::Api(error) => error.is_transient() || error.is_not_found(),
            _ => false,
        };
        match self.interruptible(self.patiently(read, passes)).await?? {
            Some(deployment) => Ok(Some(deployment)),
            None => Err(Unlaunched::Orphan(format!("Deployment {id} no longer exists, cancelled run."))),
        }
    }

    async fn make_job(
        &self,
        deployment: Option<&Deployment>,
        pool: &Pool,
        proposals: &[Uuid],
    ) -> Result<(Job, Subject), JobError> {
        let template = pool.template.as_ref().map_err(|error| JobError::Template(error.clone()))?;
        let flow = self.shared.client.read_flow(self.run.flow_id).await?;
        let sources = Sources {
            run: &self.run,
            deployment,
            flow: &flow,
            pool: &pool.record,
            template,
            worker: &self.shared.worker,
            proposals: proposals.to_vec(),
            base_env: &self.shared.base_env,
        };
        let job = job::make(&sources, &self.shared.client).await?;
        Ok((job, Subject::new(&self.run, deployment, &flow, &pool.record)))
    }

    async fn create(&self, job: &Job, subject: &Subject) -> Result<Infrastructure, Unlaunched> {
        match self.patiently(|| self.shared.launcher.create(job), LaunchError::is_transient).await {
            Ok(infrastructure) => {
                tracing::info!(flow_run.id = %self.run.id, infra.id = infrastructure.id, name = infrastructure.name, "infrastructure created");
                Ok(infrastructure)
            }
            Err(reason) => {
                if matches!(reason, Unlaunched::Broken { .. }) {
                    self.shared.events.creation_failed(subject).await;
                }
                Err(reason)
            }
        }
    }

    /// Starts the infrastructure, unless something came between. Where the run will be is stored before it is
    /// there: whoever comes after us can find it.
    async fn start(&self, infrastructure: &Infrastructure, log: &RunLog) -> Result<(), Unlaunched> {
        let update =
            FlowRunUpdate { infrastructure_pid: Some(infrastructure.pid.clone()), ..Default::default() };
        let store = self.persist(|| self.shared.client.update_flow_run(self.run.id, &update));
        if self.interruptible(store).await?.is_none() {
            log.error(&format!(
                "An error occurred while setting the `infrastructure_pid` on flow run '{}'",
                self.run.id
            ));
        }
        self.interruptible(std::future::ready(())).await?;
        self.patiently(|| self.shared.launcher.start(infrastructure), LaunchError::is_transient).await
    }

    /// Removes infrastructure that will not be used, for this reason.
    async fn discard(&self, infrastructure: &Infrastructure, reason: Unlaunched, log: &RunLog) -> Unlaunched {
        let Err(error) = self.shared.launcher.discard(infrastructure).await else { return reason };
        log.warn(&format!("'{}' was not removed: {}", infrastructure.name, chain(&error)));
        match reason {
            // The answer to its start may be lost: handed back, the run could run twice.
            Unlaunched::Stopping => error.into(),
            reason => reason,
        }
    }

    /// Repeats a step as long as it fails for reasons that pass. The step itself is never dropped half-way,
    /// the pauses end when somebody wants something else.
    async fn patiently<T, E, F>(
        &self,
        step: impl Fn() -> F,
        passes: impl Fn(&E) -> bool,
    ) -> Result<T, Unlaunched>
    where
        F: Future<Output = Result<T, E>>,
        E: std::error::Error + Into<Unlaunched> + 'static,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_secs(1);
        loop {
            match step().await {
                Ok(value) => return Ok(value),
                Err(error) if passes(&error) && Instant::now() + pause < deadline => {
                    tracing::warn!(flow_run.id = %self.run.id, error = chain(&error), "not launched yet, trying again");
                }
                Err(error) => return Err(error.into()),
            }
            self.interruptible(tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Runs a step that may be dropped, until somebody wants something else.
    async fn interruptible<T>(&self, step: impl Future<Output = T>) -> Result<T, Unlaunched> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Unlaunched::Cancelled),
            () = self.shutdown.requested() => Err(Unlaunched::Stopping),
            result = step => Ok(result),
        }
    }

    /// Who runs it, and where: also for a later worker that finds the run and not its infrastructure.
    pub(super) async fn give_labels(&self) {
        let pool = Arc::clone(&self.shared.pool.borrow());
        let labels = Map::from_iter([
            ("prefect.worker.name".to_owned(), Value::from(self.shared.worker.clone())),
            ("prefect.worker.type".to_owned(), Value::from(self.shared.launcher.kind())),
            ("prefect.work-pool.name".to_owned(), Value::from(pool.record.name.clone())),
            ("prefect.work-pool.id".to_owned(), Value::from(pool.record.id.to_string())),
            (PLACE_LABEL.to_owned(), Value::from(self.shared.launcher.place())),
        ]);
        if self.persist(|| self.shared.client.set_flow_run_labels(self.run.id, &labels)).await.is_none() {
            tracing::warn!(flow_run.id = %self.run.id, "labels were not set");
        }
    }

    /// Only a name for the UI: where it cannot be set, the run goes on, unless it has left PENDING.
    async fn propose_submitting(&self, submitting: &NewState) -> Result<(), Unlaunched> {
        match self.shared.client.set_flow_run_state(self.run.id, submitting, false).await {
            Ok(Answer::Abort { state: Some(state), .. } | Answer::Reject { state: Some(state), .. }) => {
                match state.kind {
                    StateType::Pending => Ok(()),
                    StateType::Cancelling => Err(Unlaunched::Cancelled),
                    kind => Err(Unlaunched::Taken(kind)),
                }
            }
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(flow_run.id = %self.run.id, error = chain(&error), "Submitting was not set");
                Ok(())
            }
        }
    }
}

async fn sleep_until(moment: Option<Timestamp>) {
    let wait = moment.map(|moment| moment.duration_since(Timestamp::now()));
    if let Some(wait) = wait.and_then(|wait| Duration::try_from(wait).ok()) {
        tokio::time::sleep(wait).await;
    }
}

fn not_pending(id: prefect_api::id::FlowRunId, kind: StateType) -> String {
    format!("Aborted submission of flow run '{id}': Server returned a non-pending state '{}'", kind.as_str())
}
