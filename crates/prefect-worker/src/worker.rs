//! The worker: one dispatcher that owns the truth about runs in flight, and the loops that feed it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::{FlowRun, PollScheduled, ScheduledRun};
use prefect_api::id::FlowRunId;
use prefect_client::socket::EventSender;
use prefect_client::{Client, Settings};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cancel::Watcher;
use crate::error::{Error, chain};
use crate::events::Emitter;
use crate::launcher::Launcher;
use crate::options::Options;
use crate::pool::{Pool, Sync};
use crate::run_log::RunLogs;
use crate::submission::{Shared, Unit};
use crate::{health, output};

/// How long stopping may take, below the 10 s that Docker gives.
const STOP_DEADLINE: Duration = Duration::from_secs(6);
/// How long the last events and log lines may take after that.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// A worker that is registered with the server and ready to run.
#[derive(Debug)]
pub struct Worker {
    options: Options,
    shared: Arc<Shared>,
    event_sender: EventSender,
    health: Option<TcpListener>,
    loops: JoinSet<()>,
    /// Deliveries that end by themselves when nothing is left to deliver.
    deliveries: JoinSet<()>,
    stop_loops: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("worker", &self.worker)
            .field("launcher", &self.launcher)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Registers a worker with the server. Nothing is left behind if it fails, except a pool that was created.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn register(
        options: Options,
        settings: &Settings,
        client: Client,
        launcher: Arc<dyn Launcher>,
    ) -> Result<Self, Error> {
        let listener = match options.health {
            Some(address) => Some(health::listen(address).await?),
            None => None,
        };
        let (sync, channel, pool) =
            Box::pin(Sync::register(client.clone(), &options, launcher.as_ref())).await?;
        warn_about_paused_queues(&client, &options).await;

        let mut deliveries = JoinSet::new();
        let (logs, log_delivery) = RunLogs::new(client.clone(), options.logging.clone());
        deliveries.spawn(log_delivery);
        let (output, writer) = output::to_stdout();
        deliveries.spawn_blocking(writer);

        let stop_loops = CancellationToken::new();
        let mut loops = JoinSet::new();
        loops.spawn(sync.run(channel, stop_loops.clone()));

        let event_sender = EventSender::spawn(client.clone());
        let events = Emitter::new(event_sender.clone(), &options.name, launcher.kind());
        let shared = Arc::new(Shared {
            client,
            launcher,
            pool,
            worker: options.name.clone(),
            base_env: settings.api_environment(),
            events,
            logs,
            output,
        });
        Ok(Self { options, shared, event_sender, health: listener, loops, deliveries, stop_loops })
    }

    /// Works until `stop`, or, with [`Options::run_once`], until what one poll brought is done.
    ///
    /// At `stop`: no more claims; what has not started goes back to the queue; containers go on without us.
    pub async fn run(mut self, stop: CancellationToken) {
        let pool = self.pool();
        let started = self.shared.events.started(&pool.record).await;
        let (in_flight, in_flight_watch) = watch::channel(BTreeSet::new());
        let (found, cancellations) = mpsc::channel(64);
        let (due, due_runs) = mpsc::channel(1);
        let (last_poll, last_poll_watch) = watch::channel(Instant::now());

        let watcher = Watcher {
            client: self.shared.client.clone(),
            pool: format!("prefect.work-pool.{}", pool.record.id),
            in_flight: in_flight_watch,
            poll: self.options.cancellation_poll,
            found,
        };
        self.loops.spawn(watcher.run(self.stop_loops.clone()));
        let poller =
            Poller { client: self.shared.client.clone(), options: self.options.clone(), due, last_poll };
        self.loops.spawn(poller.run(stop.clone()));
        if let Some(listener) = self.health.take() {
            let query = self.options.query;
            self.loops.spawn(health::serve(listener, last_poll_watch, query, self.stop_loops.clone()));
        }
        tracing::info!(worker = self.options.name, pool = self.options.pool, "worker started");

        let mut dispatcher = Dispatcher {
            shared: Arc::clone(&self.shared),
            slots: self.options.limit.map(|limit| Arc::new(Semaphore::new(limit))),
            units: JoinSet::new(),
            runs: HashMap::new(),
            cancels: HashMap::new(),
            in_flight,
            stop: stop.clone(),
        };
        dispatcher.run(due_runs, cancellations).await;
        dispatcher.finish().await;
        drop(dispatcher);
        self.shut_down(&pool, started).await;
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.shared.pool.borrow())
    }

    /// Tells the server, and lets nothing that was said get lost, as far as time allows.
    async fn shut_down(self, pool: &Pool, started: prefect_api::id::EventId) {
        let Self { options, shared, event_sender, mut loops, mut deliveries, stop_loops, .. } = self;
        stop_loops.cancel();
        shared.events.stopped(&pool.record, started).await;
        // With the last handle the deliveries see their end.
        drop(shared);
        let flush = async {
            while loops.join_next().await.is_some() {}
            while deliveries.join_next().await.is_some() {}
        };
        let (flushed, drained) =
            tokio::join!(tokio::time::timeout(FLUSH_DEADLINE, flush), event_sender.drain(FLUSH_DEADLINE));
        if flushed.is_err() {
            tracing::warn!("some log lines did not reach the server in time");
        }
        if let Err(error) = drained {
            tracing::warn!(error = chain(&error), "some events did not reach the server");
        }
        tracing::info!(worker = options.name, "worker stopped");
    }
}

/// Takes due runs and gives each to a unit.
struct Dispatcher {
    shared: Arc<Shared>,
    slots: Option<Arc<Semaphore>>,
    units: JoinSet<()>,
    /// Which run a unit works on.
    runs: HashMap<Id, FlowRunId>,
    cancels: HashMap<FlowRunId, CancellationToken>,
    in_flight: watch::Sender<BTreeSet<FlowRunId>>,
    stop: CancellationToken,
}

impl Dispatcher {
    /// Until `stop`, or until there are no more polls and all units have ended.
    async fn run(
        &mut self,
        mut polls: mpsc::Receiver<Vec<ScheduledRun>>,
        mut cancels: mpsc::Receiver<FlowRunId>,
    ) {
        let mut polling = true;
        while polling || !self.units.is_empty() {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(ended) = self.units.join_next_with_id() => self.forget(ended),
                Some(run) = cancels.recv() => {
                    if let Some(cancel) = self.cancels.get(&run) {
                        cancel.cancel();
                    }
                }
                runs = polls.recv(), if polling => match runs {
                    Some(runs) => self.submit(runs),
                    None => polling = false,
                },
            }
        }
    }

    fn submit(&mut self, runs: Vec<ScheduledRun>) {
        for ScheduledRun { flow_run, .. } in runs {
            if self.cancels.contains_key(&flow_run.id) {
                continue;
            }
            let slot = self.slots.as_ref().map(|slots| Arc::clone(slots).try_acquire_owned()).transpose();
            let Ok(slot) = slot else {
                tracing::debug!("all slots are taken");
                break;
            };
            self.spawn(flow_run, slot);
        }
        self.publish();
    }

    fn spawn(&mut self, run: FlowRun, slot: Option<tokio::sync::OwnedSemaphorePermit>) {
        let id = run.id;
        let cancel = CancellationToken::new();
        let unit = Unit {
            shared: Arc::clone(&self.shared),
            run,
            cancel: cancel.clone(),
            stop: self.stop.clone(),
            slot,
        };
        let task = self.units.spawn(unit.work());
        self.runs.insert(task.id(), id);
        self.cancels.insert(id, cancel);
    }

    fn forget(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
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
                    tracing::error!(
                        ?runs,
                        "the server could not be told about these runs before the deadline"
                    );
                    self.units.shutdown().await;
                    return;
                }
            }
        }
    }
}

/// Asks for due runs, again and again.
struct Poller {
    client: Client,
    options: Options,
    due: mpsc::Sender<Vec<ScheduledRun>>,
    last_poll: watch::Sender<Instant>,
}

impl Poller {
    async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let polled = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                polled = self.poll() => polled,
            };
            match polled {
                Ok(runs) => {
                    failures = 0;
                    self.last_poll.send_replace(Instant::now());
                    if self.due.send(runs).await.is_err() {
                        return;
                    }
                    if self.options.run_once {
                        return;
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = chain(&error), failures, "could not poll for runs, trying again");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered(self.options.query)) => {}
            }
        }
    }

    async fn poll(&self) -> Result<Vec<ScheduledRun>, prefect_client::Error> {
        let prefetch = SignedDuration::try_from(self.options.prefetch).unwrap_or(SignedDuration::ZERO);
        let now = Timestamp::now();
        let request = PollScheduled {
            work_queue_names: self.options.queues.clone(),
            scheduled_before: now.saturating_add(prefetch).unwrap_or(now),
            limit: None,
        };
        self.client.poll_scheduled(&self.options.pool, &request).await
    }
}

/// `interval` give or take 30 %, so that workers do not poll in step.
fn jittered(interval: Duration) -> Duration {
    let [first, ..] = Uuid::new_v4().into_bytes();
    interval.mul_f64(0.7 + 0.6 * f64::from(first) / 255.0)
}

async fn warn_about_paused_queues(client: &Client, options: &Options) {
    match client.read_work_queues(&options.pool).await {
        Ok(queues) => {
            let mut ours = queues
                .iter()
                .filter(|queue| options.queues.is_empty() || options.queues.contains(&queue.name))
                .peekable();
            if ours.peek().is_some() && ours.all(|queue| queue.is_paused) {
                tracing::warn!(
                    pool = options.pool,
                    "all work queues of this worker are paused: they give no runs out"
                );
            }
        }
        Err(error) => tracing::debug!(error = chain(&error), "queues not read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_thirty_per_cent() {
        for _ in 0..1000 {
            let jittered = jittered(Duration::from_secs(10)).as_secs_f64();
            assert!((6.99..=13.01).contains(&jittered), "{jittered}");
        }
    }
}
