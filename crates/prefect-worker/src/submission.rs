//! One claimed run, from the claim to the report of its end.
//!
//! A unit owns its run: its slot, its infrastructure, its reports. It can be asked to cancel, or to stop
//! because the worker stops; it looks at these between steps and inside the long ones, never in the middle of
//! a step that changes something outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::deployment::Deployment;
use prefect_api::flow_run::{FlowRun, FlowRunPolicy, FlowRunUpdate};
use prefect_api::id::{EventId, StateId};
use prefect_api::state::{Answer, NewState, StateType};
use prefect_client::Client;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::events::{Emitter, Subject};
use crate::exit::{Claim, Verdict, verdict};
use crate::job::{self, Sources};
use crate::launcher::{Infrastructure, Job, LaunchError, Launcher, Outcome, OutputSink};
use crate::pool::Pool;
use crate::run_log::{RunLog, RunLogs};

/// Time a container has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(30);

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
    /// It cannot be: what went wrong, and the text.
    Broken { kind: &'static str, text: String },
}

impl From<LaunchError> for Unlaunched {
    fn from(error: LaunchError) -> Self {
        Self::Broken { kind: error.kind(), text: chain(&error) }
    }
}

impl From<job::JobError> for Unlaunched {
    fn from(error: job::JobError) -> Self {
        let kind = match &error {
            job::JobError::Api(_) => "PrefectAPIError",
            job::JobError::Template(_) | job::JobError::Field { .. } => "InvalidJobConfiguration",
        };
        Self::Broken { kind, text: chain(&error) }
    }
}

/// A launched run.
struct Launched {
    infrastructure: Infrastructure,
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
        let mut state = claim;
        match self.launch(deployment.as_ref(), &mut state, &log).await {
            Ok(launched) => {
                log.info(&format!("Flow run '{}' submitted to infrastructure", self.run.name));
                self.follow(launched, state, &log).await;
            }
            Err(Unlaunched::Cancelled) => {
                self.set_cancelled("Flow run cancelled by worker (no infrastructure found).", &log).await;
            }
            Err(Unlaunched::Stopping) => self.hand_back(&log).await,
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
            Err(error) if error.is_not_found() => {
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
    async fn claim(&self, log: &RunLog) -> Option<StateId> {
        let id = self.run.id;
        match self.shared.client.set_flow_run_state(id, &NewState::new(StateType::Pending), false).await {
            Ok(Answer::Accept(state)) if state.kind == StateType::Pending => return Some(state.id),
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
            Err(error) => log.error(&format!("Failed to update state of flow run '{id}': {}", chain(&error))),
        }
        None
    }

    async fn launch(
        &self,
        deployment: Option<&Deployment>,
        state: &mut StateId,
        log: &RunLog,
    ) -> Result<Launched, Unlaunched> {
        let shared = &self.shared;
        let pool = Arc::clone(&shared.pool.borrow());
        let template = pool.template.as_ref().map_err(|error| job::JobError::Template(error.clone()))?;
        let flow = shared.client.read_flow(self.run.flow_id).await.map_err(job::JobError::Api)?;
        let sources = Sources {
            run: &self.run,
            deployment,
            flow: &flow,
            pool: &pool.record,
            template,
            worker: &shared.worker,
            base_env: &shared.base_env,
        };
        let job = self.interruptible(job::make(&sources, &shared.client)).await??;

        let subject = Subject::new(&self.run, deployment, &flow, &pool.record);
        let submitted = shared.events.submitted(&subject).await;
        self.give_labels(&pool).await;
        self.propose_submitting(state).await;

        self.interruptible(shared.launcher.prepare(&job)).await??;
        let infrastructure = self.create(&job, &subject).await?;
        let created = shared.events.container(&subject, &infrastructure, "created", None).await;
        self.store_pid(&infrastructure, log).await;
        if let Err(reason) = self.start(&infrastructure).await {
            if let Err(error) = shared.launcher.discard(&infrastructure).await {
                log.warn(&format!(
                    "Container '{}' that never ran was not removed: {error}",
                    infrastructure.name
                ));
            }
            return Err(reason);
        }
        let last_event = shared.events.container(&subject, &infrastructure, "running", Some(created)).await;
        Ok(Launched { infrastructure, subject, submitted, last_event })
    }

    async fn create(&self, job: &Job, subject: &Subject) -> Result<Infrastructure, Unlaunched> {
        match self.shared.launcher.create(job).await {
            Ok(infrastructure) => {
                tracing::info!(flow_run.id = %self.run.id, infra.id = infrastructure.id, name = infrastructure.name, "container created");
                Ok(infrastructure)
            }
            Err(error) => {
                self.shared.events.creation_failed(subject).await;
                Err(error.into())
            }
        }
    }

    /// Starts the container, unless something came between.
    async fn start(&self, infrastructure: &Infrastructure) -> Result<(), Unlaunched> {
        if self.cancel.is_cancelled() {
            return Err(Unlaunched::Cancelled);
        }
        if self.stop.is_cancelled() {
            return Err(Unlaunched::Stopping);
        }
        Ok(self.shared.launcher.start(infrastructure).await?)
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

    async fn propose_submitting(&self, state: &mut StateId) {
        let submitting = NewState::new(StateType::Pending).named("Submitting");
        match self.shared.client.set_flow_run_state(self.run.id, &submitting, false).await {
            Ok(Answer::Accept(accepted)) => *state = accepted.id,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(flow_run.id = %self.run.id, error = chain(&error), "Submitting was not set");
            }
        }
    }

    /// Stores where the run will be before it is there: whoever comes after us can find it.
    async fn store_pid(&self, infrastructure: &Infrastructure, log: &RunLog) {
        let update =
            FlowRunUpdate { infrastructure_pid: Some(infrastructure.pid.clone()), ..Default::default() };
        if let Err(error) = self.shared.client.update_flow_run(self.run.id, &update).await {
            log.error(&format!(
                "An error occurred while setting the `infrastructure_pid` on flow run '{}': {}",
                self.run.id,
                chain(&error)
            ));
        }
    }

    /// Waits for the end of the infrastructure and reports it.
    async fn follow(&self, launched: Launched, state: StateId, log: &RunLog) {
        let Launched { infrastructure, subject, submitted, last_event } = launched;
        let shared = &self.shared;
        let mut end = std::pin::pin!(shared.launcher.wait(&infrastructure, shared.output.clone()));
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
                    let (outcome, ()) = tokio::join!(end, self.kill(&infrastructure, log));
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
        self.report(&outcome, Claim { state, infrastructure_pid: &infrastructure.pid }, log).await;
        shared.events.executed(&subject, &infrastructure.pid, code, submitted).await;
    }

    async fn kill(&self, infrastructure: &Infrastructure, log: &RunLog) {
        let mut pause = Duration::from_secs(1);
        loop {
            match self.shared.launcher.kill(infrastructure, GRACE).await {
                Ok(()) | Err(LaunchError::NotFound { .. }) => return,
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(GRACE);
                }
                Err(error) => {
                    log.error(&format!("Error killing infrastructure: {}", chain(&error)));
                    return;
                }
            }
        }
    }

    /// Whether the run has entered RUNNING since we claimed it.
    async fn has_reported_running(&self) -> bool {
        let read = || self.shared.client.read_flow_run(self.run.id);
        self.persist(read).await.is_some_and(|run| run.run_count > self.run.run_count)
    }

    async fn report(&self, outcome: &Outcome, claim: Claim<'_>, log: &RunLog) {
        let Some(run) = self.persist(|| self.shared.client.read_flow_run(self.run.id)).await else { return };
        match verdict(outcome, &run, claim) {
            Verdict::Settled => {}
            Verdict::Cancelled => {
                self.set_cancelled("Flow run cancelled by worker: its infrastructure has ended.", log).await;
            }
            Verdict::Crashed { message, advice } => {
                self.make_retriable(&run).await;
                self.set_crashed(&message, log).await;
                if let Some(advice) = advice {
                    log.info(advice);
                }
            }
        }
    }

    /// A crash in the middle of an in-process retry leaves a mark that keeps the UI's retry from ever being
    /// picked up; nobody else removes it.
    async fn make_retriable(&self, run: &FlowRun) {
        if run.empirical_policy.retry_type.is_none() {
            return;
        }
        let policy = FlowRunPolicy { retry_type: None, ..run.empirical_policy.clone() };
        let update = FlowRunUpdate { empirical_policy: Some(policy), ..Default::default() };
        self.persist(|| self.shared.client.update_flow_run(self.run.id, &update)).await;
    }

    async fn set_crashed(&self, message: &str, log: &RunLog) {
        let state = NewState::new(StateType::Crashed).with_message(message);
        let answer = self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await;
        if let Some(Answer::Accept(_)) = answer {
            log.info(&format!("Reported flow run '{}' as crashed: {message}", self.run.id));
        }
    }

    async fn set_cancelled(&self, message: &str, log: &RunLog) {
        let state = NewState::new(StateType::Cancelled).with_message(message);
        if self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, true)).await.is_some() {
            log.info(message);
        }
    }

    /// Gives a claimed run that has not started back to the queue.
    async fn hand_back(&self, log: &RunLog) {
        let state = NewState::new(StateType::Scheduled)
            .scheduled_at(Timestamp::now())
            .with_message(format!("Handed back by worker '{}', which is stopping.", self.shared.worker));
        if let Some(Answer::Accept(_)) =
            self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await
        {
            log.info(&format!(
                "Handed flow run '{}' back: worker '{}' is stopping",
                self.run.id, self.shared.worker
            ));
        }
    }

    /// Makes a call until it succeeds or cannot: an outage of the server only delays what it must be told.
    /// `None` if the run is gone or the server refuses.
    async fn persist<T, F>(&self, call: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, prefect_client::Error>>,
    {
        let mut pause = Duration::from_secs(1);
        loop {
            match call().await {
                Ok(value) => return Some(value),
                Err(error) if error.is_not_found() => {
                    tracing::debug!(flow_run.id = %self.run.id, "the run was deleted");
                    return None;
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(flow_run.id = %self.run.id, error = chain(&error), "the server was not told, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
                Err(error) => {
                    tracing::error!(flow_run.id = %self.run.id, error = chain(&error), "the server refused");
                    return None;
                }
            }
        }
    }
}

fn not_pending(id: prefect_api::id::FlowRunId, kind: StateType) -> String {
    format!("Aborted submission of flow run '{id}': Server returned a non-pending state '{}'", kind.as_str())
}
