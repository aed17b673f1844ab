//! Owns the truth about runs in flight: takes due and found runs and gives each to a unit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prefect_api::flow_run::FlowRun;
use prefect_api::id::FlowRunId;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::poller::Wake;
use crate::reconcile::Adoption;
use crate::shutdown::Shutdown;
use crate::status::{Pulse, RunPhase};
use crate::unit::{Shared, Unit};

/// How long units may take to hand back and report once the worker leaves, below the 10 s that Docker gives.
/// How often it goes round when nothing happens.
pub(crate) const TICK: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(6);

/// Takes runs and gives each to a unit.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    limit: Option<usize>,
    units: JoinSet<()>,
    /// Which run a unit works on.
    runs: HashMap<Id, FlowRunId>,
    cancels: HashMap<FlowRunId, CancellationToken>,
    in_flight: watch::Sender<BTreeSet<FlowRunId>>,
    wake: Arc<Wake>,
    /// Some queue has a limit of its own.
    limited_queues: bool,
    /// Runs were left with the server because all slots were taken.
    backlog: bool,
    shutdown: Shutdown,
}

/// What comes to a dispatcher.
pub(crate) struct Inbox {
    /// Runs that are due. Closed when there are no more polls.
    pub(crate) due: mpsc::Receiver<Vec<FlowRun>>,
    /// Runs that are to end.
    pub(crate) cancels: mpsc::Receiver<FlowRunId>,
    /// Infrastructure that was found running or ended.
    pub(crate) adoptions: mpsc::Receiver<Adoption>,
}

impl Dispatcher {
    pub(crate) fn new(
        shared: Arc<Shared>,
        limit: Option<usize>,
        limited_queues: bool,
        in_flight: watch::Sender<BTreeSet<FlowRunId>>,
        wake: Arc<Wake>,
        shutdown: Shutdown,
    ) -> Self {
        let (units, runs, cancels) = (JoinSet::new(), HashMap::new(), HashMap::new());
        Self {
            shared,
            limit,
            units,
            runs,
            cancels,
            in_flight,
            wake,
            limited_queues,
            backlog: false,
            shutdown,
        }
    }

    /// Until the worker is to leave, or until there is nothing more to do.
    pub(crate) async fn run(&mut self, mut inbox: Inbox, pulse: Pulse) {
        let mut ticks = tokio::time::interval(TICK);
        let shutdown = self.shutdown.clone();
        let mut polling = true;
        while polling || !self.units.is_empty() {
            pulse.beat();
            tokio::select! {
                biased;
                () = shutdown.leaves_runs() => break,
                () = shutdown.requested(), if polling => polling = false,
                Some(ended) = self.units.join_next_with_id() => self.forget(ended),
                Some(run) = inbox.cancels.recv() => {
                    if let Some(cancel) = self.cancels.get(&run) {
                        cancel.cancel();
                    }
                }
                Some(adoption) = inbox.adoptions.recv() => self.adopt(adoption),
                runs = inbox.due.recv(), if polling => match runs {
                    Some(runs) => self.submit(runs),
                    None => polling = false,
                },
                _ = ticks.tick() => {}
            }
        }
        self.finish().await;
    }

    fn submit(&mut self, runs: Vec<FlowRun>) {
        self.backlog = false;
        for run in runs {
            if self.cancels.contains_key(&run.id) {
                continue;
            }
            if self.limit.is_some_and(|limit| self.cancels.len() >= limit) {
                tracing::debug!("all slots are taken");
                self.backlog = true;
                break;
            }
            let unit = self.unit(run, RunPhase::Claiming);
            let (id, task) = (unit.run.id, self.units.spawn(unit.work()));
            self.runs.insert(task.id(), id);
        }
        self.publish();
    }

    /// Takes over what another worker, or this one in a former life, has left. It counts against the limit;
    /// it is there, whatever the limit says.
    fn adopt(&mut self, adoption: Adoption) {
        if self.cancels.contains_key(&adoption.run.id) {
            return;
        }
        let unit = self.unit(adoption.run, RunPhase::Running);
        unit.entry.set_infrastructure(&adoption.found.infrastructure.name);
        let (id, task) = (unit.run.id, self.units.spawn(unit.adopt(adoption.found)));
        self.runs.insert(task.id(), id);
        self.publish();
    }

    fn unit(&mut self, run: FlowRun, phase: RunPhase) -> Unit {
        let cancel = CancellationToken::new();
        self.cancels.insert(run.id, cancel.clone());
        let entry = self.shared.board.run(run.id, &run.name, phase);
        Unit { shared: Arc::clone(&self.shared), run, cancel, shutdown: self.shutdown.clone(), entry }
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let task = match ended {
            Ok((task, ())) => task,
            Err(error) => {
                let run = self.runs.get(&error.id()).map(ToString::to_string);
                tracing::error!(flow_run.id = run, %error, "the unit of a run broke; this is a fault of the worker");
                error.id()
            }
        };
        if let Some(run) = self.runs.remove(&task) {
            self.cancels.remove(&run);
        }
        self.publish();
        // The limits of pool and queues are the server's: only a poll tells whether a slot is free there.
        if self.backlog || self.limited_queues || self.shared.pool.borrow().record.concurrency_limit.is_some()
        {
            self.wake.now();
        }
    }

    fn publish(&self) {
        self.in_flight.send_replace(self.cancels.keys().copied().collect());
    }

    /// Waits for the units, which have been told to stop.
    async fn finish(&mut self) {
        let deadline = Instant::now() + STOP_DEADLINE;
        while !self.units.is_empty() {
            match tokio::time::timeout_at(deadline, self.units.join_next_with_id()).await {
                Ok(Some(ended)) => self.forget(ended),
                Ok(None) => return,
                Err(_) => {
                    let runs: Vec<String> = self.cancels.keys().map(ToString::to_string).collect();
                    tracing::warn!(
                        ?runs,
                        "the server could not be told about these runs before the deadline; the next worker will"
                    );
                    self.units.shutdown().await;
                    return;
                }
            }
        }
    }
}
