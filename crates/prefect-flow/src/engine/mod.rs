//! The engine: carries one process's flow runs from their first state to their last.
//!
//! [`Engine`] holds what all runs of the process share: the client, and the ways out for events, log lines
//! and artifacts. A [`session::Session`] drives one flow run, a deployment's or a subflow's. [`execute`] finds
//! out what is to run.

mod execute;
mod hooks;
mod options;
mod pace;
mod patience;
mod session;
mod supervise;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use prefect_api::event::Event;
use prefect_api::record::NewArtifact;
use prefect_client::socket::EventSender;
use prefect_client::{Client, Error as ApiError};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use execute::{Error, execute, policy_of, run_by_hand};
pub(crate) use hooks::{Death, after_death, crash};
pub(crate) use options::Options;
pub(crate) use patience::Patience;
pub(crate) use session::{End, Origin, Session, related};

use crate::flow::AnyFlow;
use crate::program::Program;
use crate::record::Variables;
use crate::report::{ArtifactQueue, LogSink, Progress};
use crate::results::Results;
use crate::slots::Limits;
use crate::terminal::Terminal;
use pace::Pace;
use watch::CancelWatch;

/// What Prefect says of runs that ended because their process had to.
pub(crate) const ABORTED: &str = "Execution was aborted by a termination signal.";

/// What all flow runs of one process share.
#[derive(Debug)]
pub(crate) struct Engine {
    client: Client,
    options: Options,
    patience: Arc<Patience>,
    terminal: Terminal,
    /// The program's version, for flows without one of their own.
    version: &'static str,
    events: EventSender,
    pace: Pace,
    logs: LogSink,
    artifacts: ArtifactQueue,
    limits: Limits,
    variables: Variables,
    results: Results,
    watch: CancelWatch,
    permits: Arc<Semaphore>,
    /// Work that reports; waited for before the process ends.
    tasks: TaskTracker,
    closing: CancellationToken,
    /// Fires when the process is asked to end.
    terminated: CancellationToken,
    /// Fires when it is asked again: nothing is waited for any more.
    hurried: CancellationToken,
    /// Work that can be dropped at any moment.
    background: Mutex<JoinSet<()>>,
}

impl Engine {
    /// Starts the engine for the runs of a program.
    pub(crate) fn start(
        client: Client,
        options: Options,
        terminal: Terminal,
        program: &Program,
    ) -> Arc<Self> {
        let tasks = TaskTracker::new();
        let closing = CancellationToken::new();
        let hurried = CancellationToken::new();
        let patience = Arc::new(Patience::new(options.report_deadline, hurried.clone()));
        let logs = LogSink::new(options.logging.clone());
        let mut background = JoinSet::new();
        let (sink, log_client) = (logs.clone(), client.clone());
        let logs_closing = closing.clone();
        background.spawn(async move { sink.deliver(&log_client, &logs_closing).await });
        let watch = CancelWatch::new(client.clone(), options.poll_interval);
        let watching = watch.clone();
        background.spawn(async move { watching.run().await });
        Arc::new(Self {
            events: EventSender::spawn(client.clone()),
            pace: Pace::new(client.clone(), options.standstill),
            artifacts: ArtifactQueue::spawn(client.clone(), Arc::clone(&patience), &tasks, closing.clone()),
            limits: Limits::new(client.clone(), Arc::clone(&patience), tasks.clone(), options.renew_after),
            variables: Variables::default(),
            results: Results::new(
                program.result_home(&options),
                client.clone(),
                Arc::clone(&patience),
                &program.storage_blocks,
            ),
            permits: Arc::new(Semaphore::new(program.concurrency)),
            version: program.version,
            terminated: CancellationToken::new(),
            hurried,
            background: Mutex::new(background),
            client,
            options,
            patience,
            terminal,
            logs,
            watch,
            tasks,
            closing,
        })
    }

    /// Delivers what is on its way, within deadlines, and stops.
    pub(crate) async fn close(&self) {
        let deadline = self.options.close_deadline;
        self.closing.cancel();
        self.tasks.close();
        let deliver = async {
            if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
                tracing::warn!(left = self.tasks.len(), "reports did not reach the Prefect server in time");
            }
            // Only now, because whatever reports may send events and write lines.
            let (events, ()) =
                tokio::join!(self.events.drain(deadline), self.logs.flush(&self.client, deadline));
            if let Err(error) = events {
                tracing::warn!(%error, "events did not reach the Prefect server in time");
            }
        };
        tokio::select! {
            () = deliver => {}
            () = self.hurried.cancelled() => tracing::warn!("ended before all reports were delivered"),
        }
        self.background.lock().await.shutdown().await;
    }

    /// The process is asked to end; asked again, it waits for nothing any more.
    pub(crate) fn terminate(&self) {
        if self.terminated.is_cancelled() {
            self.hurried.cancel();
        }
        self.terminated.cancel();
    }

    /// Fires some moments after the process was asked again to end: whatever is not told by then never is.
    pub(crate) async fn out_of_time(&self) {
        self.hurried.cancelled().await;
        tokio::time::sleep(self.options.last_words).await;
    }

    /// The version of a flow's code.
    pub(crate) fn version_of(&self, flow: &dyn AnyFlow) -> String {
        flow.info().version.clone().unwrap_or_else(|| self.version.to_owned())
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) const fn patience(&self) -> &Arc<Patience> {
        &self.patience
    }

    pub(crate) const fn logs(&self) -> &LogSink {
        &self.logs
    }

    pub(crate) const fn artifacts(&self) -> &ArtifactQueue {
        &self.artifacts
    }

    pub(crate) const fn events(&self) -> &EventSender {
        &self.events
    }

    pub(crate) const fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) const fn variables(&self) -> &Variables {
        &self.variables
    }

    pub(crate) const fn results(&self) -> &Results {
        &self.results
    }

    /// The program's version.
    pub(crate) const fn version(&self) -> &'static str {
        self.version
    }

    pub(crate) const fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// Sends an event from where nothing can be awaited.
    pub(crate) fn send_detached(&self, event: Event) {
        let events = self.events.clone();
        self.tasks.spawn(async move { events.send(event).await });
    }

    /// Drives a subflow's run to its end, even if nobody waits for it any more.
    pub(crate) fn drive(&self, among: &TaskTracker, session: Session) -> JoinHandle<Result<End, ApiError>> {
        among.spawn(self.tasks.track_future(session.drive()))
    }

    /// A progress at 0, reported from now on.
    pub(crate) fn start_progress(&self, name: &str, artifact: NewArtifact) -> Progress {
        let (client, patience) = (self.client.clone(), Arc::clone(&self.patience));
        let (progress, report) = Progress::new(client, patience, artifact, self.terminal.bar(name));
        self.tasks.spawn(report);
        progress
    }

    /// Time between looks whether a paused run was resumed.
    pub(crate) const fn pause_poll(&self) -> Duration {
        self.options.poll_interval
    }

    /// Time between looks at a run of a deployment that is waited for.
    pub(crate) const fn wait_poll(&self) -> Duration {
        self.options.wait_interval
    }

    fn grace(&self, terminated: bool) -> Duration {
        if terminated { self.options.terminate_grace } else { self.options.cancel_grace }
    }
}
