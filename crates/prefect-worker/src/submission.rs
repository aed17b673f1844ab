//! One claimed run, from the claim to the report of its end.
//!
//! A unit owns its run: its slot, its infrastructure, its reports. It can be asked to cancel, or to stop
//! because the worker stops; it looks at these between steps and inside the long ones, never in the middle of
//! a step that changes something outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prefect_api::deployment::Deployment;
use prefect_api::flow_run::{FlowRun, FlowRunUpdate};
use prefect_api::id::EventId;
use prefect_api::state::{Answer, NewState, StateType};
use prefect_client::Client;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::events::{Emitter, Subject};
use crate::exit::Claim;
use crate::job::{self, JobError, Sources};
use crate::launcher::{Attempt, Infrastructure, Job, LaunchError, Launcher, Outcome, OutputSink};
use crate::pool::Pool;
use crate::report::RETRY_MAX;
use crate::run_log::{RunLog, RunLogs};

/// Time a container has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(30);
/// Outages of server and engine that are shorter only delay a launch.
const PATIENCE: Duration = Duration::from_mins(30);

/// What all units of a worker share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) pool: watch::Receiver<Arc<Pool>>,
    pub(crate) worker: String,
    pub(crate) base_env: BTreeMap<String, String>,
    pub(crate) events: Emitter,
    pub(crate) logs: RunLogs,
    pub(crate) output: OutputSink,
}

/// A run that this worker works on.
pub(crate) struct Unit {
    pub(crate) shared: Arc<Shared>,
    pub(crate) run: FlowRun,
    /// Somebody wants the run cancelled; the server says so, checked.
    pub(crate) cancel: CancellationToken,
    /// The worker stops.
    pub(crate) stop: CancellationToken,
    /// The slot, given back when the unit ends.
    pub(crate) slot: Option<OwnedSemaphorePermit>,
}

/// Why a run was not launched.
enum Unlaunched {
    /// It is to be cancelled.
    Cancelled,
    /// The worker stops.
    Stopping,
    /// It is not ours any more: others have put it into this state.
    Taken(StateType),
    /// It cannot be: what went wrong, and the text.
    Broken { kind: &'static str, text: String },
}

impl From<LaunchError> for Unlaunched {
    fn from(error: LaunchError) -> Self {
        Self::Broken { kind: error.kind(), text: chain(&error) }
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
        Self::Broken { kind, text: chain(&error) }
    }
}

/// A launched run.
struct Launched {
    infrastructure: Infrastructure,
    attempt: Attempt,
    subject: Subject,
    submitted: EventId,
    last_event: EventId,
}

impl Unit {
    /// Works on the run until its end is reported, or until it is not ours any more.
    pub(crate) async fn work(self) {
        let log = self.shared.logs.of(self.run.id);
        log.info(&format!("Worker '{}' submitting flow run '{}'", self.shared.worker, self.run.id));
        let Ok(deployment) = self.deployment(&log).await else { return };
        let Some(claim) = self.claim(&log).await else { return };
        let proposals = [claim, NewState::new(StateType::Pending).named("Submitting")];
        match self.launch(deployment.as_ref(), &proposals, &log).await {
            Ok(launched) => {
                log.info(&format!("Flow run '{}' submitted to infrastructure", self.run.name));
                self.follow(launched, &proposals, &log).await;
            }
            Err(Unlaunched::Cancelled) => {
                self.set_cancelled("Flow run cancelled by worker (no infrastructure found).", &log).await;
            }
            Err(Unlaunched::Stopping) => self.hand_back(&proposals, &log).await,
            Err(Unlaunched::Taken(kind)) => log.info(&not_pending(self.run.id, kind)),
            Err(Unlaunched::Broken { kind, text }) => {
                log.error(&format!(
                    "Failed to submit flow run '{}' to infrastructure: failed to {text}",
                    self.run.name
                ));
                let message =
                    format!("Failed to submit flow run to infrastructure: {kind}: failed to {text}");
                self.set_crashed(&message, &log).await;
            }
        }
        drop(self.slot);
    }

    /// The deployment, if the run has one. `Err` if the run is not to be launched.
    async fn deployment(&self, log: &RunLog) -> Result<Option<Deployment>, ()> {
        let Some(id) = self.run.deployment_id else { return Ok(None) };
        match self.shared.client.read_deployment(id).await {
            Ok(deployment) => Ok(Some(deployment)),
            Err(error) if self.is_gone(&error).await => {
                let message = format!("Deployment {id} no longer exists, cancelled run.");
                self.set_cancelled(&message, log).await;
                Err(())
            }
            Err(error) => {
                // Not claimed yet: the next poll brings it again, here or elsewhere.
                tracing::warn!(flow_run.id = %self.run.id, error = chain(&error), "deployment not read, run not claimed");
                Err(())
            }
        }
    }

    /// Proposes PENDING, which at most one worker gets.
    async fn claim(&self, log: &RunLog) -> Option<NewState> {
        let id = self.run.id;
        let claim = NewState::new(StateType::Pending);
        match self.shared.client.set_flow_run_state(id, &claim, false).await {
            Ok(Answer::Accept(state)) if state.kind == StateType::Pending => return Some(claim),
            Ok(Answer::Reject { state: Some(state), .. }) if state.entered_by(&claim) => return Some(claim),
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
                let state = if error.is_transient() { self.read_run().await?.state } else { None };
                if state.is_some_and(|state| state.entered_by(&claim)) {
                    return Some(claim);
                }
            }
        }
        None
    }

    async fn launch(
        &self,
        deployment: Option<&Deployment>,
        [_, submitting]: &[NewState; 2],
        log: &RunLog,
    ) -> Result<Launched, Unlaunched> {
        let shared = &self.shared;
        let pool = Arc::clone(&shared.pool.borrow());
        let make = self.patiently(|| self.make_job(deployment, &pool), JobError::is_transient);
        let (job, subject) = self.interruptible(make).await??;

        let submitted = shared.events.submitted(&subject).await;
        self.give_labels(&pool).await;
        self.propose_submitting(submitting).await?;

        let prepare = self.patiently(|| shared.launcher.prepare(&job, log), LaunchError::is_transient);
        self.interruptible(prepare).await??;
        let infrastructure = self.create(&job, &subject).await?;
        let created = shared.events.container(&subject, &infrastructure, "created", None).await;
        if let Err(reason) = self.start(&infrastructure, log).await {
            return Err(self.discard(&infrastructure, reason, log).await);
        }
        let last_event = shared.events.container(&subject, &infrastructure, "running", Some(created)).await;
        Ok(Launched { infrastructure, attempt: job.attempt, subject, submitted, last_event })
    }

    async fn make_job(
        &self,
        deployment: Option<&Deployment>,
        pool: &Pool,
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
            proposals: Vec::new(),
            base_env: &self.shared.base_env,
        };
        let job = job::make(&sources, &self.shared.client).await?;
        Ok((job, Subject::new(&self.run, deployment, &flow, &pool.record)))
    }

    async fn create(&self, job: &Job, subject: &Subject) -> Result<Infrastructure, Unlaunched> {
        match self.patiently(|| self.shared.launcher.create(job), LaunchError::is_transient).await {
            Ok(infrastructure) => {
                tracing::info!(flow_run.id = %self.run.id, infra.id = infrastructure.id, name = infrastructure.name, "container created");
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

    /// Starts the container, unless something came between. Where the run will be is stored before it is
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
        log.warn(&format!("Container '{}' was not removed: {}", infrastructure.name, chain(&error)));
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
            () = self.stop.cancelled() => Err(Unlaunched::Stopping),
            result = step => Ok(result),
        }
    }

    async fn give_labels(&self, pool: &Pool) {
        let labels = Map::from_iter([
            ("prefect.worker.name".to_owned(), Value::from(self.shared.worker.clone())),
            ("prefect.worker.type".to_owned(), Value::from(self.shared.launcher.kind())),
            ("prefect.work-pool.name".to_owned(), Value::from(pool.record.name.clone())),
            ("prefect.work-pool.id".to_owned(), Value::from(pool.record.id.to_string())),
        ]);
        if let Err(error) = self.shared.client.set_flow_run_labels(self.run.id, &labels).await {
            tracing::warn!(flow_run.id = %self.run.id, error = chain(&error), "labels were not set");
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

    /// Waits for the end of the infrastructure and reports it.
    async fn follow(&self, launched: Launched, proposals: &[NewState], log: &RunLog) {
        let Launched { infrastructure, attempt, subject, submitted, last_event } = launched;
        let shared = &self.shared;
        let mut end = std::pin::pin!(
            shared
                .launcher
                .wait(&infrastructure, attempt.treatment.stream_output.then(|| shared.output.clone()))
        );
        let outcome = tokio::select! {
            biased;
            outcome = &mut end => outcome,
            () = self.stop.cancelled() => {
                tracing::info!(flow_run.id = %self.run.id, infra.id = infrastructure.id, "leaving the container running");
                return;
            }
            () = self.cancel.cancelled() => {
                if self.has_reported_running().await {
                    // What runs inside ends itself and reports; we only see it end.
                    tokio::select! {
                        outcome = &mut end => outcome,
                        () = self.stop.cancelled() => return,
                    }
                } else {
                    let outcome = tokio::select! {
                        biased;
                        outcome = &mut end => outcome,
                        never = self.kill(&infrastructure, log) => match never {},
                    };
                    self.set_cancelled("Flow run cancelled by worker while pending.", log).await;
                    log.info(&format!("Cancelled pending flow run '{}'", self.run.id));
                    outcome
                }
            }
        };
        let code = match &outcome {
            Outcome::Exited { code, .. } => *code,
            Outcome::Vanished => -1,
        };
        shared.events.container(&subject, &infrastructure, "exited", Some(last_event)).await;
        let claim = Claim { proposals, infrastructure_pid: &infrastructure.pid };
        self.report(&outcome, claim, &infrastructure, &attempt, log).await;
        shared.events.executed(&subject, &infrastructure.pid, code, submitted).await;
        if let Err(error) = shared.launcher.tidy(&infrastructure).await {
            log.warn(&format!("Container '{}' was not removed: {}", infrastructure.name, chain(&error)));
        }
    }

    /// Ends the infrastructure, and tries again as long as nobody has seen it end.
    async fn kill(&self, infrastructure: &Infrastructure, log: &RunLog) -> std::convert::Infallible {
        let mut pause = Duration::from_secs(1);
        loop {
            match self.shared.launcher.kill(infrastructure, GRACE).await {
                Ok(()) | Err(LaunchError::NotFound { .. }) => std::future::pending().await,
                Err(error) => log.warn(&format!("Error killing infrastructure: {}", chain(&error))),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Whether the run has entered RUNNING since we claimed it.
    async fn has_reported_running(&self) -> bool {
        self.read_run().await.is_some_and(|run| run.run_count > self.run.run_count)
    }
}

fn not_pending(id: prefect_api::id::FlowRunId, kind: StateType) -> String {
    format!("Aborted submission of flow run '{id}': Server returned a non-pending state '{}'", kind.as_str())
}
