//! Keeps the process from telling of task runs faster than the server can record them.
//!
//! The server takes events faster than it records task runs, and drops what the queue between the two has no room for
//! (contract §4.2): such a task run stays in its former state for ever. It does not tell how long the queue is. But a task
//! run shows whether an event about it has been recorded, and events are recorded in their order. So some are looked for,
//! once many are under way; the process waits until they are there.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::id::TaskRunId;
use prefect_api::state::State;
use prefect_client::Client;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::error::chain;

/// Events that may be under way to the records. The server's queue holds 10,000, for all processes together.
const AHEAD: usize = 4_000;
/// One of so many is looked for.
const STEP: usize = 500;
/// Time between looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets events about task runs pass, and makes them wait.
#[derive(Debug)]
pub(crate) struct Pace {
    client: Client,
    /// When nothing is recorded for so long, nobody records, or what is looked for is lost: then it is not waited for.
    standstill: Duration,
    under_way: Mutex<UnderWay>,
}

/// The events that are not known to be recorded.
#[derive(Debug, Default)]
struct UnderWay {
    /// How many since the last mark.
    unmarked: usize,
    /// What is looked for, oldest first: one for every step.
    marks: VecDeque<Mark>,
}

/// A state that is looked for.
#[derive(Debug)]
struct Mark {
    task_run: TaskRunId,
    entered: Timestamp,
}

impl Mark {
    /// Whether the task run is in this state or a later one. The server's times are in microseconds.
    fn is_reached(&self, now: &State) -> bool {
        now.timestamp.as_microsecond() >= self.entered.as_microsecond()
    }
}

impl UnderWay {
    fn count(&self) -> usize {
        self.marks.len() * STEP + self.unmarked
    }

    fn add(&mut self, task_run: TaskRunId, entered: Timestamp) {
        self.unmarked += 1;
        if self.unmarked == STEP {
            self.unmarked = 0;
            self.marks.push_back(Mark { task_run, entered });
        }
    }
}

impl Pace {
    pub(super) fn new(client: Client, standstill: Duration) -> Self {
        Self { client, standstill, under_way: Mutex::default() }
    }

    /// Waits until the event may be sent by which a task run enters a state. Cancel safe.
    pub(crate) async fn admit(&self, task_run: TaskRunId, entered: Timestamp) {
        // Held while it waits: who comes later waits for longer.
        let mut under_way = self.under_way.lock().await;
        if under_way.count() >= AHEAD {
            // On the heap: there may be thousands here, of which one at a time looks.
            Box::pin(self.catch_up(&mut under_way)).await;
        }
        under_way.add(task_run, entered);
    }

    /// Waits until fewer are under way.
    async fn catch_up(&self, under_way: &mut UnderWay) {
        let mut since = Instant::now();
        while under_way.count() >= AHEAD {
            match self.recorded(&under_way.marks).await {
                0 if since.elapsed() > self.standstill => {
                    tracing::warn!("the Prefect server does not record task runs, or has lost some");
                    *under_way = UnderWay::default();
                }
                0 => sleep(PAUSE).await,
                recorded => {
                    under_way.marks.drain(..recorded);
                    since = Instant::now();
                }
            }
        }
    }

    /// How many of these are recorded, which is all up to the last one that is.
    async fn recorded(&self, marks: &VecDeque<Mark>) -> usize {
        let ids: Vec<TaskRunId> = marks.iter().map(|mark| mark.task_run).collect();
        let filter = json!({"task_runs": {"id": {"any_": ids}}});
        let looking = self.client.filter_task_runs(&filter);
        let found = match tokio::time::timeout(self.standstill, looking).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(error = chain(&error), "nobody can tell which task runs are recorded");
                return 0;
            }
            Err(_) => return 0,
        };
        let is_recorded = |mark: &Mark| {
            let mut runs = found.iter().filter(|run| run.id == mark.task_run);
            runs.any(|run| run.state.as_ref().is_some_and(|state| mark.is_reached(state)))
        };
        marks.iter().rposition(is_recorded).map_or(0, |last| last + 1)
    }
}
