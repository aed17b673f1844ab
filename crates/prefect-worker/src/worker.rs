//! The worker of one pool: its registration, and the loops that feed its dispatcher.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use prefect_client::socket::EventSender;
use prefect_client::{Client, Settings};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::claim::Fingerprint;
use crate::dispatcher::{Dispatcher, Inbox, TICK};
use crate::error::{Error, chain};
use crate::events::Emitter;
use crate::launcher::Launcher;
use crate::options::Options;
use crate::output;
use crate::poller::{Hearing, Poller, Wake};
use crate::pool::{Pool, Sync};
use crate::reconcile::Reconciler;
use crate::run_log::RunLogs;
use crate::shutdown::Shutdown;
use crate::unit::Shared;
use crate::watcher::Watcher;

/// How long the last events and log lines may take after everything else has ended.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// A worker that is registered with the server and ready to run.
#[derive(Debug)]
pub struct Worker {
    options: Options,
    shared: Arc<Shared>,
    event_sender: EventSender,
    /// Some queue of ours has a limit: a run that ends may let another one start.
    limited_queues: bool,
    loops: JoinSet<()>,
    /// Deliveries that end by themselves when nothing is left to deliver.
    deliveries: JoinSet<()>,
    stop_loops: CancellationToken,
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
        admin: &Admin,
    ) -> Result<Self, Error> {
        let metrics = admin.metrics.clone();
        let client = client.observed(move |error| metrics.api_error(error));
        let board = admin.status.pool(&options.pool, options.query);
        let (sync, channel, pool) =
            Box::pin(Sync::register(client.clone(), &options, launcher.as_ref(), board.clone())).await?;
        board.set_limit(options.limit);
        let limited_queues = look_at_queues(&client, &options).await;

        let mut deliveries = JoinSet::new();
        let (logs, log_delivery) = RunLogs::new(client.clone(), options.logging.clone());
        deliveries.spawn(log_delivery);
        let (output, writer) = output::to_stdout();
        deliveries.spawn_blocking(writer);

        let stop_loops = CancellationToken::new();
        let mut loops = JoinSet::new();
        let stop = stop_loops.clone();
        let pause = sync.longest_pause();
        loops.spawn(board.watch("sync", Some(pause), |pulse| sync.run(channel, stop, pulse)));

        let event_sender = EventSender::spawn(client.clone());
        let events = Emitter::new(event_sender.clone(), &options.name, launcher.kind());
        let shared = Arc::new(Shared {
            client,
            launcher,
            pool,
            worker: options.name.clone(),
            fingerprint: Fingerprint::of(&options.pool, &options.name),
            base_env: settings.api_environment(),
            events,
            logs,
            output,
            prefetch: options.prefetch,
            board,
            metrics: admin.metrics.clone(),
        });
        Ok(Self { options, shared, event_sender, limited_queues, loops, deliveries, stop_loops })
    }

    /// Works until `shutdown` is requested, or, with [`Options::run_once`], until what one poll brought is
    /// done.
    ///
    /// First it looks for what a former worker has left. At the end there are no more claims, what has not
    /// started goes back to the queue, and the rest is treated as the shutdown says.
    pub async fn run(mut self, shutdown: Shutdown) {
        let pool = self.pool();
        let started = self.shared.events.started(&pool.record).await;
        let (in_flight, in_flight_watch) = watch::channel(BTreeSet::new());
        let wake = Arc::new(Wake::default());
        let inbox = self.start_loops(&pool, in_flight_watch, &wake, &shutdown);
        tracing::info!(worker = self.options.name, pool = self.options.pool, "worker started");

        let limit = self.options.limit;
        let mut dispatcher =
            Dispatcher::new(Arc::clone(&self.shared), limit, self.limited_queues, in_flight, wake, shutdown);
        let board = self.shared.board.clone();
        board.watch("dispatcher", Some(TICK), |pulse| dispatcher.run(inbox, pulse)).await;
        drop(dispatcher);
        self.shut_down(&pool, started).await;
    }

    /// Starts what feeds the dispatcher.
    fn start_loops(
        &mut self,
        pool: &Pool,
        in_flight: watch::Receiver<BTreeSet<prefect_api::id::FlowRunId>>,
        wake: &Arc<Wake>,
        shutdown: &Shutdown,
    ) -> Inbox {
        let (found, cancels) = mpsc::channel(64);
        let (due_sender, due) = mpsc::channel(1);
        let (adoption_sender, adoptions) = mpsc::channel(64);
        let (connected, hearing) = watch::channel(false);
        let (looked, first_look) = oneshot::channel();
        let deaf = Arc::new(Notify::new());
        let client = &self.shared.client;
        let board = &self.shared.board;

        let watcher = Watcher {
            client: client.clone(),
            pool: format!("prefect.work-pool.{}", pool.record.id),
            in_flight: in_flight.clone(),
            poll: self.options.cancellation_poll,
            found,
            wake: Arc::clone(wake),
            connected,
            deaf: Arc::clone(&deaf),
            board: board.clone(),
        };
        let stop = self.stop_loops.clone();
        let pause = self.options.cancellation_poll;
        self.loops.spawn(board.watch("watcher", Some(pause), |pulse| watcher.run(stop, pulse)));
        let reconciler = Reconciler {
            shared: Arc::clone(&self.shared),
            pool: self.options.pool.clone(),
            in_flight,
            adoptions: adoption_sender,
            shutdown: shutdown.clone(),
            settled: HashSet::new(),
        };
        let stop = self.stop_loops.clone();
        // It may have to report a run, which takes as long as the server is away.
        self.loops.spawn(board.watch("reconciler", None, |_| reconciler.run(looked, stop)));
        let poller = Poller {
            client: client.clone(),
            options: self.options.clone(),
            due: due_sender,
            board: board.clone(),
            metrics: self.shared.metrics.clone(),
            wake: Arc::clone(wake),
            hearing: Hearing { connected: hearing, deaf },
        };
        let (shutdown, stop) = (shutdown.clone(), self.stop_loops.clone());
        let pause = poller.longest_pause();
        self.loops.spawn(board.watch("poller", Some(pause), |pulse| async move {
            // What is there already counts against the limit: it has to be known before anything is claimed.
            let polling = async {
                if first_look.await.is_ok() {
                    poller.run(stop, pulse).await;
                }
            };
            tokio::select! {
                () = shutdown.requested() => {}
                () = polling => {}
            }
        }));
        Inbox { due, cancels, adoptions }
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

/// Warns if no queue gives runs out; tells whether any has a limit.
async fn look_at_queues(client: &Client, options: &Options) -> bool {
    let queues = match client.read_work_queues(&options.pool).await {
        Ok(queues) => queues,
        Err(error) => {
            tracing::debug!(error = chain(&error), "queues not read");
            return false;
        }
    };
    let ours = |name: &String| options.queues.is_empty() || options.queues.contains(name);
    let mut ours = queues.iter().filter(|queue| ours(&queue.name)).peekable();
    let limited = ours.clone().any(|queue| queue.concurrency_limit.is_some());
    if ours.peek().is_some() && ours.all(|queue| queue.is_paused) {
        tracing::warn!(
            pool = options.pool,
            "all work queues of this worker are paused: they give no runs out"
        );
    }
    limited
}
