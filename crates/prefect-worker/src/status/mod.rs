//! What the worker is doing at this moment. The loops write it on a [`StatusBoard`]; health checks, metrics
//! and `prefect-worker status` read it from there, so that they never contradict each other.

mod loops;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use prefect_api::work_pool::WorkPool;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use loops::Loop;
pub(crate) use loops::ROUND;
pub use loops::{LoopGuard, LoopStatus, Pulse};

/// A picture of the process at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The worker's name.
    pub worker: String,
    /// The version of this program.
    pub version: String,
    /// This process; another one of the same name has another.
    pub instance: Uuid,
    /// The number of the process where it runs.
    pub pid: u32,
    /// When the process started.
    pub started_at: Timestamp,
    /// When this picture was taken.
    pub taken_at: Timestamp,
    /// Where the process is in its life.
    pub state: State,
    /// The root of the Prefect API.
    pub api_url: String,
    /// The version that the server says it is, once it has said so.
    pub server_version: Option<String>,
    /// The container engine, once it has answered.
    pub engine: Option<Engine>,
    /// Reports about runs that the server has not taken yet.
    pub reports_waiting: u64,
    /// The loops of the worker.
    pub loops: Vec<LoopStatus>,
    /// The pools that it serves.
    pub pools: Vec<PoolStatus>,
}

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It registers with the server.
    #[default]
    Starting,
    /// It claims runs.
    Running,
    /// It claims no more and waits for the runs that it has.
    Draining,
    /// It leaves.
    Stopping,
}

impl State {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

/// A container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Where it is.
    pub address: String,
    /// Its version.
    pub version: String,
}

/// A work pool that the worker serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "these are independent facts")]
#[non_exhaustive]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Its type, once it was read.
    pub kind: Option<String>,
    /// It gives no runs out.
    pub paused: bool,
    /// The pool's own limit on concurrent runs.
    pub concurrency_limit: Option<u32>,
    /// The most runs of it that this worker works on at a time; no limit if absent.
    pub limit: Option<usize>,
    /// Its template lacks fields of ours, or has fields that nobody here knows.
    pub template_drift: bool,
    /// When it was last asked for runs, with success.
    pub last_poll: Option<Timestamp>,
    /// Seconds since then, or since the worker began to serve it.
    pub last_poll_age_seconds: f64,
    /// Seconds between two polls.
    pub poll_interval_seconds: f64,
    /// Its events come as they happen.
    pub events_connected: bool,
    /// The worker channel is open; without it REST is used.
    pub channel_connected: bool,
    /// The runs that are being worked on, oldest first.
    pub runs: Vec<RunStatus>,
}

/// A run that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Its id.
    pub id: FlowRunId,
    /// Its name.
    pub name: String,
    /// Name of its container or process, once there is one.
    pub infrastructure: Option<String>,
    /// What is being done with it.
    pub phase: RunPhase,
    /// Since when.
    pub since: Timestamp,
}

/// What is being done with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// It is asked for; others may get it.
    Claiming,
    /// It is ours; its job is made and its image pulled.
    Preparing,
    /// Its infrastructure is made and started.
    Starting,
    /// Its infrastructure runs.
    Running,
    /// Its infrastructure has ended, or is being ended, and that is reported.
    Ending,
}

impl RunPhase {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [Self::Claiming, Self::Preparing, Self::Starting, Self::Running, Self::Ending];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claiming => "claiming",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ending => "ending",
        }
    }
}

/// Where the worker writes what it is doing. Cheap to clone; all clones are one board.
#[derive(Clone)]
pub struct StatusBoard {
    worker: Arc<str>,
    api_url: Arc<str>,
    instance: Uuid,
    started_at: Timestamp,
    board: Arc<watch::Sender<Board>>,
}

impl std::fmt::Debug for StatusBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusBoard").field("worker", &self.worker).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Board {
    state: State,
    server_version: Option<String>,
    engine: Option<Engine>,
    reports_waiting: u64,
    loops: BTreeMap<String, Loop>,
    pools: BTreeMap<Arc<str>, Pool>,
}

struct Pool {
    record: Option<(String, bool, Option<u32>)>,
    limit: Option<usize>,
    template_drift: bool,
    /// The moment for people, and the one for ages, which no change of the clock disturbs.
    last_poll: Option<Timestamp>,
    polled: Instant,
    poll_interval: Duration,
    events_connected: bool,
    channel_connected: bool,
    runs: BTreeMap<FlowRunId, RunStatus>,
}

impl StatusBoard {
    /// The board of a worker of this name, whose API is at `api_url`.
    pub fn new(worker: &str, api_url: &str) -> Self {
        Self {
            worker: worker.into(),
            api_url: api_url.into(),
            instance: Uuid::now_v7(),
            started_at: Timestamp::now(),
            board: Arc::new(watch::Sender::new(Board::default())),
        }
    }

    /// The worker's name.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// This process.
    pub fn instance(&self) -> Uuid {
        self.instance
    }

    /// The process has come to another part of its life.
    pub fn set_state(&self, state: State) {
        self.board.send_modify(|board| board.state = state);
    }

    /// The server has said its version; tells whether that is news.
    pub fn set_server_version(&self, version: &str) -> bool {
        self.board.send_if_modified(|board| {
            let is_news = board.server_version.as_deref() != Some(version);
            board.server_version = Some(version.to_owned());
            is_news
        })
    }

    /// The engine has answered.
    pub fn set_engine(&self, engine: &Engine) {
        self.board.send_modify(|board| board.engine = Some(engine.clone()));
    }

    /// A report that the server has not taken, until the guard is dropped.
    pub fn report_waits(&self) -> WaitingReport {
        self.board.send_modify(|board| board.reports_waiting += 1);
        WaitingReport { board: self.clone() }
    }

    /// A pool that the worker begins to serve, and polls at this interval.
    pub fn pool(&self, name: &str, poll_interval: Duration) -> PoolBoard {
        let name: Arc<str> = name.into();
        self.board.send_modify(|board| {
            board.pools.entry(Arc::clone(&name)).or_insert_with(|| Pool {
                record: None,
                limit: None,
                template_drift: false,
                last_poll: None,
                polled: Instant::now(),
                poll_interval,
                events_connected: false,
                channel_connected: false,
                runs: BTreeMap::new(),
            });
        });
        PoolBoard { board: self.clone(), name }
    }

    /// Waits until there is something new on the board.
    pub async fn changed(&self) {
        // We hold the sender: this cannot fail.
        drop(self.board.subscribe().changed().await);
    }

    /// The picture of this moment.
    pub fn snapshot(&self) -> Status {
        let board = self.board.borrow();
        let now = Instant::now();
        Status {
            worker: self.worker.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance,
            pid: std::process::id(),
            started_at: self.started_at,
            taken_at: Timestamp::now(),
            state: board.state,
            api_url: self.api_url.to_string(),
            server_version: board.server_version.clone(),
            engine: board.engine.clone(),
            reports_waiting: board.reports_waiting,
            loops: board.loops.iter().map(|(name, entry)| entry.status(name, now)).collect(),
            pools: board.pools.iter().map(|(name, pool)| pool.status(name, now)).collect(),
        }
    }
}

impl Pool {
    fn status(&self, name: &str, now: Instant) -> PoolStatus {
        let mut runs: Vec<RunStatus> = self.runs.values().cloned().collect();
        runs.sort_by_key(|run| (run.since, run.id));
        PoolStatus {
            name: name.to_owned(),
            kind: self.record.as_ref().map(|(kind, ..)| kind.clone()),
            paused: self.record.as_ref().is_some_and(|&(_, paused, _)| paused),
            concurrency_limit: self.record.as_ref().and_then(|&(.., limit)| limit),
            limit: self.limit,
            template_drift: self.template_drift,
            last_poll: self.last_poll,
            last_poll_age_seconds: now.duration_since(self.polled).as_secs_f64(),
            poll_interval_seconds: self.poll_interval.as_secs_f64(),
            events_connected: self.events_connected,
            channel_connected: self.channel_connected,
            runs,
        }
    }
}

/// The part of the board that is about one pool.
#[derive(Debug, Clone)]
pub struct PoolBoard {
    board: StatusBoard,
    name: Arc<str>,
}

impl PoolBoard {
    fn modify(&self, change: impl FnOnce(&mut Pool)) {
        self.board.board.send_modify(|board| {
            if let Some(pool) = board.pools.get_mut(&self.name) {
                change(pool);
            }
        });
    }

    /// The pool as the server describes it now, and whether its template differs from ours.
    pub fn set_record(&self, record: &WorkPool, template_drift: bool) {
        let record = (record.kind.clone(), record.is_paused, record.concurrency_limit);
        self.modify(|pool| {
            pool.record = Some(record);
            pool.template_drift = template_drift;
        });
    }

    /// The whole board.
    pub fn board(&self) -> &StatusBoard {
        &self.board
    }

    /// The most runs of the pool that this worker works on at a time.
    pub fn set_limit(&self, limit: Option<usize>) {
        self.modify(|pool| pool.limit = limit);
    }

    /// A poll has succeeded.
    pub fn polled(&self) {
        self.modify(|pool| {
            pool.last_poll = Some(Timestamp::now());
            pool.polled = Instant::now();
        });
    }

    /// Whether the pool's events come as they happen.
    pub fn set_events_connected(&self, connected: bool) {
        self.modify(|pool| pool.events_connected = connected);
    }

    /// Whether the worker channel is open.
    pub fn set_channel_connected(&self, connected: bool) {
        self.modify(|pool| pool.channel_connected = connected);
    }

    /// A run that is being worked on until the entry is dropped.
    pub fn run(&self, id: FlowRunId, name: &str, phase: RunPhase) -> RunEntry {
        let run =
            RunStatus { id, name: name.to_owned(), infrastructure: None, phase, since: Timestamp::now() };
        self.modify(|pool| {
            pool.runs.insert(id, run);
        });
        RunEntry { pool: self.clone(), id }
    }
}

/// A run on the board; dropping it takes the run off.
#[derive(Debug)]
pub struct RunEntry {
    pool: PoolBoard,
    id: FlowRunId,
}

impl RunEntry {
    fn modify(&self, change: impl FnOnce(&mut RunStatus)) {
        self.pool.modify(|pool| {
            if let Some(run) = pool.runs.get_mut(&self.id) {
                change(run);
            }
        });
    }

    /// Something else is being done with it from now on.
    pub fn set_phase(&self, phase: RunPhase) {
        self.modify(|run| {
            if run.phase != phase {
                run.phase = phase;
                run.since = Timestamp::now();
            }
        });
    }

    /// It has this infrastructure.
    pub fn set_infrastructure(&self, name: &str) {
        self.modify(|run| run.infrastructure = Some(name.to_owned()));
    }
}

impl Drop for RunEntry {
    fn drop(&mut self) {
        self.pool.modify(|pool| {
            pool.runs.remove(&self.id);
        });
    }
}

/// A report that the server has not taken yet.
#[derive(Debug)]
pub struct WaitingReport {
    board: StatusBoard,
}

impl Drop for WaitingReport {
    fn drop(&mut self) {
        self.board.board.send_modify(|board| board.reports_waiting = board.reports_waiting.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_board_shows_what_was_written_and_forgets_what_was_dropped() {
        let board = StatusBoard::new("w", "http://h/api");
        assert_eq!(board.snapshot().state, State::Starting);
        board.set_state(State::Running);
        board.set_engine(&Engine { address: "unix:///sock".to_owned(), version: "28.2".to_owned() });
        assert!(board.set_server_version("3.7.2") && !board.set_server_version("3.7.2"));
        let pool = board.pool("p", Duration::from_secs(10));
        let record = serde_json::json!({"id": Uuid::nil(), "name": "p", "type": "docker", "is_paused": true});
        pool.set_record(&serde_json::from_value(record).unwrap(), true);
        pool.set_limit(Some(3));
        pool.polled();
        let id = FlowRunId::generate();
        let run = pool.run(id, "crow", RunPhase::Claiming);
        run.set_phase(RunPhase::Running);
        run.set_infrastructure("crow-1");
        tokio::time::advance(Duration::from_secs(7)).await;

        let status = board.snapshot();
        assert_eq!((status.state, status.pools[0].limit), (State::Running, Some(3)));
        let shown = &status.pools[0];
        assert_eq!((shown.kind.as_deref(), shown.paused, shown.template_drift), (Some("docker"), true, true));
        assert!((shown.last_poll_age_seconds - 7.0).abs() < 0.1, "{}", shown.last_poll_age_seconds);
        assert_eq!(shown.runs[0].phase, RunPhase::Running);
        assert_eq!(shown.runs[0].infrastructure.as_deref(), Some("crow-1"));
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);

        drop(run);
        assert!(board.snapshot().pools[0].runs.is_empty());
    }
}
