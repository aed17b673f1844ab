//! Events that the server may have lost (contract §4.2).
//!
//! What it has confirmed it keeps in memory until it writes it down, and forgets it when it is killed. Hence what was
//! confirmed lately is kept here too, and when a connection breaks the server is asked what it has.
//!
//! Without asking, it would do harm to send everything again, although ids make one event of two: a server on SQLite
//! fails to write down some twenty events of which it knows all, and throws away what comes with them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::event::Resource;
use prefect_api::id::{EventId, TaskRunId};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::events_in::Text;
use crate::error::Error;
use crate::http::Client;

/// How long a busy server may take to write down what it has confirmed.
const UNWRITTEN: Duration = Duration::from_mins(2);
/// Most events that are kept for that.
const KEPT: usize = 2048;
/// A server that is idle writes down what it has in less than this.
const FLUSH: Duration = Duration::from_secs(6);
/// Events that are asked for at a time: the server tells no more.
const PAGE: usize = 50;

/// Events that were confirmed lately.
#[derive(Debug, Default)]
pub(super) struct Confirmed(VecDeque<(Instant, Text)>);

impl Confirmed {
    /// Adds events that have just been confirmed.
    pub(super) fn add(&mut self, events: Vec<Text>) {
        let now = Instant::now();
        self.0.extend(events.into_iter().map(|event| (now, event)));
        while self.0.len() > KEPT || self.0.front().is_some_and(is_written) {
            self.0.pop_front();
        }
    }

    /// Takes those out that may not be written down yet, oldest first.
    pub(super) fn take(&mut self) -> Vec<Text> {
        let kept = std::mem::take(&mut self.0).into_iter();
        kept.filter(|it| !is_written(it)).map(|(_, event)| event).collect()
    }
}

fn is_written((since, _): &(Instant, Text)) -> bool {
    since.elapsed() > UNWRITTEN
}

/// What an event is known by.
#[derive(Debug, Deserialize)]
struct Mark {
    id: EventId,
    occurred: Timestamp,
    resource: Resource,
}

impl Mark {
    /// The task run whose state the event tells.
    fn task_run(&self) -> Option<TaskRunId> {
        self.resource.id()?.strip_prefix("prefect.task-run.")?.parse().ok()
    }

    /// Whether a task run that entered its state at this time has been told of the event. The server's times are in
    /// microseconds.
    fn is_reached(&self, entered: Timestamp) -> bool {
        entered.as_microsecond() >= self.occurred.as_microsecond()
    }
}

/// Those of these events, oldest first, that the server does not have. If nobody may ask, these are all. An error if there
/// is no answer.
pub(super) async fn missing(client: &Client, events: &[Text]) -> Result<Vec<Text>, Error> {
    // They are ours: each can be read.
    let marked = events.iter().filter_map(|event| Some((event, serde_json::from_str(event).ok()?)));
    let (events, marks): (Vec<&Text>, Vec<Mark>) = marked.unzip();
    match look_until_at_rest(client, &marks).await {
        Ok(missing) => {
            let marked = events.into_iter().zip(&marks);
            Ok(marked
                .filter(|(_, mark)| missing.contains(&mark.id))
                .map(|(event, _)| event.clone())
                .collect())
        }
        Err(error) if error.is_transient() => Err(error),
        Err(error) => {
            tracing::debug!(%error, "the server does not tell which events it has");
            Ok(events.into_iter().cloned().collect())
        }
    }
}

/// Looks again as long as more and more is there: a server that is busy has the rest in its memory, and would have it twice.
async fn look_until_at_rest(client: &Client, marks: &[Mark]) -> Result<HashSet<EventId>, Error> {
    let mut before = usize::MAX;
    loop {
        let missing = look(client, marks).await?;
        if missing.is_empty() || missing.len() >= before {
            return Ok(missing);
        }
        before = missing.len();
        tokio::time::sleep(FLUSH).await;
    }
}

/// Asks for the newest first, and no further when all of a page is there: events are written down in their order.
async fn look(client: &Client, marks: &[Mark]) -> Result<HashSet<EventId>, Error> {
    let mut missing = HashSet::new();
    for page in marks.rchunks(PAGE) {
        let (stored, entered) = (stored(client, page).await?, entered(client, page).await?);
        let before = missing.len();
        let is_missing = |mark: &&Mark| {
            let reached = |run| entered.get(&run).is_some_and(|entered| mark.is_reached(*entered));
            !stored.contains(&mark.id) || !mark.task_run().is_none_or(reached)
        };
        missing.extend(page.iter().filter(is_missing).map(|mark| mark.id));
        if missing.len() == before {
            break;
        }
    }
    Ok(missing)
}

/// The ids of those that are stored as events.
async fn stored(client: &Client, marks: &[Mark]) -> Result<HashSet<EventId>, Error> {
    let ids: Vec<EventId> = marks.iter().map(|mark| mark.id).collect();
    let times = marks.iter().map(|mark| mark.occurred);
    let filter = json!({
        "id": {"id": ids},
        "occurred": {"since": times.clone().min(), "until": times.max()},
    });
    client.filter_event_ids(&filter, PAGE).await
}

/// When the task runs of these events entered the states that they are in: another part of the server makes them of the
/// events.
async fn entered(client: &Client, marks: &[Mark]) -> Result<HashMap<TaskRunId, Timestamp>, Error> {
    let ids: HashSet<TaskRunId> = marks.iter().filter_map(Mark::task_run).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let filter = json!({"task_runs": {"id": {"any_": ids}}, "limit": PAGE});
    let found = client.filter_task_runs(&filter).await?.into_iter();
    Ok(found.filter_map(|run| Some((run.id, run.state?.timestamp))).collect())
}
