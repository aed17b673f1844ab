//! One run in the hands of this worker, from its claim or its adoption to the report of its end.
//!
//! A unit owns its run: its infrastructure, its reports. It can be asked to cancel, or to stop because the
//! worker stops; it looks at these between steps and inside the long ones, never in the middle of a step that
//! changes something outside. What it must remember is with the infrastructure ([`Attempt`]): a unit may end
//! at any moment, and another one goes on from there.
//!
//! - `launch`: from the claim to infrastructure that runs
//! - `follow`: from there to its end: output, deadlines, cancellation
//! - `report`: what the server must be told, through every outage

mod follow;
mod launch;
mod lines;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::FlowRun;
use prefect_api::id::{EventId, LeaseId};
use prefect_api::state::StateType;
use prefect_client::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::claim::{self, Fingerprint};
use crate::error::chain;
use crate::events::{Emitter, Subject};
use crate::launcher::{Attempt, Found, Infrastructure, Launcher, Outcome, OutputSink, Phase};
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::run_log::{RunLog, RunLogs};
use crate::shutdown::Shutdown;
use crate::status::{PoolBoard, RunEntry, RunPhase};

/// The message of runs that are cancelled before they had infrastructure, in Prefect's words.
const NOTHING_THERE: &str = "Flow run cancelled by worker (no infrastructure found).";
/// The longest pause between two tries of anything.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a lease on a deployment's slot is kept for, and how often that is renewed.
const LEASE: Duration = Duration::from_mins(5);
const LEASE_RENEWAL: Duration = Duration::from_mins(1);

/// What all units of a worker share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) pool: watch::Receiver<Arc<Pool>>,
    pub(crate) worker: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) base_env: BTreeMap<String, String>,
    pub(crate) events: Emitter,
    pub(crate) logs: RunLogs,
    pub(crate) output: OutputSink,
    /// How early a run is claimed before it is due.
    pub(crate) prefetch: Duration,
    pub(crate) board: PoolBoard,
    pub(crate) metrics: Metrics,
}

impl Shared {
    fn pool_name(&self) -> String {
        self.pool.borrow().record.name.clone()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("worker", &self.worker)
            .field("launcher", &self.launcher)
            .finish_non_exhaustive()
    }
}

/// A run that this worker works on.
pub(crate) struct Unit {
    pub(crate) shared: Arc<Shared>,
    pub(crate) run: FlowRun,
    /// Somebody wants the run cancelled; the server says so, checked.
    pub(crate) cancel: CancellationToken,
    pub(crate) shutdown: Shutdown,
    /// The run on the board.
    pub(crate) entry: RunEntry,
}

/// A run whose infrastructure runs, or has ended.
struct Launched {
    infrastructure: Infrastructure,
    attempt: Attempt,
    /// What its events are about; unknown if flow or deployment are gone.
    subject: Option<Subject>,
    submitted: Option<EventId>,
    last_event: Option<EventId>,
    /// Output up to now was passed on by another worker.
    adopted: bool,
}

impl Unit {
    /// Claims the run and works on it until its end is reported, or until it is not ours any more.
    pub(crate) async fn work(self) {
        let log = self.log();
        log.info(&format!("Worker '{}' submitting flow run '{}'", self.shared.worker, self.run.id));
        let metrics = &self.shared.metrics;
        let Some(claim) = self.claim(&log).await else {
            metrics.claim_lost(&self.shared.pool_name());
            return;
        };
        metrics.claimed(&self.shared.pool_name(), self.waited());
        self.entry.set_phase(RunPhase::Preparing);
        let lease = claim.lease;
        // Beside the launch, and again until the server takes them: they help who comes after us.
        let labels = async {
            self.give_labels().await;
            std::future::pending::<std::convert::Infallible>().await
        };
        let work = self.with_lease(lease, async {
            // Boxed: what a launch needs is not kept for as long as the run lasts.
            let cause = match Box::pin(self.launch(claim, &log)).await {
                Ok(launched) => {
                    log.info(&format!("Flow run '{}' submitted to infrastructure", self.run.name));
                    Box::pin(self.follow(launched, &log)).await
                }
                Err(cause) => cause,
            };
            metrics.ended(&self.shared.pool_name(), cause);
        });
        tokio::select! {
            biased;
            () = work => {}
            never = labels => match never {},
        }
    }

    /// Takes over infrastructure that another worker, or this one in a former life, has made for the run.
    pub(crate) async fn adopt(self, found: Found) {
        let log = self.log();
        let Found { infrastructure, attempt, phase } = found;
        if phase == Phase::Created {
            self.give_up_unstarted(&infrastructure, &attempt, &log).await;
            return;
        }
        if self
            .run
            .state_type
            .is_some_and(|kind| matches!(kind, StateType::Cancelling | StateType::Cancelled))
        {
            self.cancel.cancel();
        }
        self.shared.metrics.adopted(&self.shared.pool_name());
        if phase == Phase::Running {
            let former = &attempt.worker;
            log.info(&format!(
                "Worker '{}' takes over flow run '{}' from worker '{former}'",
                self.shared.worker, self.run.id
            ));
        }
        let subject = match self.subject().await {
            Ok(subject) => Some(subject),
            Err(error) => {
                tracing::debug!(flow_run.id = %self.run.id, error = chain(&error), "events of this run are not sent");
                None
            }
        };
        let launched =
            Launched { infrastructure, attempt, subject, submitted: None, last_event: None, adopted: true };
        let lease =
            self.run.state.as_ref().and_then(|state| state.state_details.deployment_concurrency_lease_id);
        let cause = self.with_lease(lease, Box::pin(self.follow(launched, &log))).await;
        self.shared.metrics.ended(&self.shared.pool_name(), cause);
    }

    /// Ends a run that was claimed by a worker that is no more, and whose infrastructure is not there.
    pub(crate) async fn conclude(&self) {
        let log = self.log();
        let claim: Vec<_> = claim::of_run(&self.run).into_iter().collect();
        match self.run.state_type {
            Some(StateType::Pending) => {
                self.hand_back(&claim, "its worker ended before it was started", &log).await;
            }
            Some(StateType::Cancelling) => {
                self.set_cancelled(NOTHING_THERE, &log).await;
            }
            _ => {
                let Some(pid) = &self.run.infrastructure_pid else { return };
                let id = pid.rsplit(':').next().unwrap_or_default();
                let infrastructure = Infrastructure::new(id, &self.run.name, pid);
                let attempt = Attempt::new(self.run.id, "", &self.shared.worker);
                // Not one of this worker's: its end does not count.
                let (outcome, ending) = (Outcome::Vanished, report::Ending::ItsOwn);
                self.report(&outcome, ending, &infrastructure, &attempt, &log).await;
            }
        }
    }

    /// Infrastructure that its worker could not start any more: the run starts anew.
    async fn give_up_unstarted(&self, infrastructure: &Infrastructure, attempt: &Attempt, log: &RunLog) {
        if let Err(error) = self.shared.launcher.discard(infrastructure).await {
            tracing::warn!(
                infra.id = infrastructure.id,
                error = chain(&error),
                "what never started was not removed"
            );
            return;
        }
        self.hand_back(&attempt.proposals, "its worker ended before it was started", log).await;
    }

    /// How long the run could have been claimed before it was.
    fn waited(&self) -> Duration {
        let scheduled = self.run.state.as_ref().map(|state| state.timestamp);
        let prefetch = SignedDuration::try_from(self.shared.prefetch).unwrap_or(SignedDuration::ZERO);
        let early = self.run.next_scheduled_start_time.and_then(|due| due.saturating_sub(prefetch).ok());
        let since = scheduled.max(early).unwrap_or_else(Timestamp::now);
        // Clocks of two machines: a claim is not made before its run is there.
        Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default()
    }

    async fn subject(&self) -> Result<Subject, prefect_client::Error> {
        let client = &self.shared.client;
        let flow = client.read_flow(self.run.flow_id).await?;
        let deployment = match self.run.deployment_id {
            Some(id) => Some(client.read_deployment(id).await?),
            None => None,
        };
        Ok(Subject::new(&self.run, deployment.as_ref(), &flow, &self.shared.pool.borrow().record))
    }

    /// Does the work, and keeps the deployment's slot meanwhile: a pull may take longer than the lease lasts.
    async fn with_lease<T>(&self, lease: Option<LeaseId>, work: impl Future<Output = T>) -> T {
        let Some(lease) = lease else { return work.await };
        let keep = async {
            loop {
                tokio::time::sleep(LEASE_RENEWAL).await;
                if let Err(error) = self.shared.client.renew_lease(lease, LEASE).await
                    && !error.is_transient()
                {
                    // Given back at the end of the run, or forgotten by a server that restarted.
                    tracing::debug!(flow_run.id = %self.run.id, error = chain(&error), "the lease is gone");
                    return std::future::pending::<std::convert::Infallible>().await;
                }
            }
        };
        tokio::select! {
            result = work => result,
            never = keep => match never {},
        }
    }

    fn log(&self) -> RunLog {
        self.shared.logs.of(self.run.id)
    }
}

/// Whether the run is still in a state that one of these proposals made. The answers to proposals may have
/// been lost, hence states are known by their transition ids.
pub(crate) fn entered_by(run: &FlowRun, proposals: &[uuid::Uuid]) -> bool {
    claim::of_run(run).is_some_and(|id| proposals.contains(&id))
}
