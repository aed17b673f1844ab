//! Listens to the server's events about the pool: runs to claim, runs to cancel. Events get lost, hence it
//! also looks by itself for cancellations.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prefect_api::event::Event;
use prefect_api::id::FlowRunId;
use prefect_client::Client;
use prefect_client::socket::{EventStream, Item};
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::poller::Wake;
use crate::status::{PoolBoard, Pulse, ROUND};

const CANCELLING: &str = "prefect.flow-run.Cancelling";
const CANCELLED: &str = "prefect.flow-run.Cancelled";
/// The states in which a run waits to be claimed, and those whose entry ends a run of ours.
const EVENTS: &[&str] = &[
    "prefect.flow-run.Scheduled",
    "prefect.flow-run.AwaitingRetry",
    "prefect.flow-run.AwaitingConcurrencySlot",
    "prefect.flow-run.Resuming",
    CANCELLING,
    CANCELLED,
];
/// Time between two looks for cancellations while there are no events.
const BLIND_POLL: Duration = Duration::from_secs(10);

/// Watches the pool and the runs in `in_flight`.
pub(crate) struct Watcher {
    pub(crate) client: Client,
    /// The resource id of the pool whose events are watched.
    pub(crate) pool: String,
    pub(crate) in_flight: watch::Receiver<BTreeSet<FlowRunId>>,
    pub(crate) poll: Duration,
    /// Takes the runs that the server says are CANCELLING or CANCELLED.
    pub(crate) found: mpsc::Sender<FlowRunId>,
    /// Woken when a run may be claimed.
    pub(crate) wake: Arc<Wake>,
    pub(crate) connected: watch::Sender<bool>,
    pub(crate) deaf: Arc<Notify>,
    pub(crate) board: PoolBoard,
}

impl Watcher {
    pub(crate) async fn run(self, stop: CancellationToken, pulse: Pulse) {
        let mut events = self.subscribe();
        loop {
            pulse.beat();
            let connected = *self.connected.borrow();
            let pause = if connected { self.poll } else { self.poll.min(BLIND_POLL) };
            let suspects = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                item = events.next() => match item {
                    Some(Item::Event(event)) => match self.heard(&event) {
                        Some(suspect) => BTreeSet::from([suspect]),
                        None => continue,
                    },
                    Some(Item::Connected) => {
                        self.hears(true);
                        self.wake.now();
                        self.in_flight.borrow().clone()
                    }
                    Some(Item::Lost(error)) => {
                        tracing::debug!(error = chain(&error), "no events, looking instead");
                        self.hears(false);
                        continue;
                    }
                    None => return,
                },
                () = self.deaf.notified() => {
                    self.hears(false);
                    events = self.subscribe();
                    continue;
                }
                () = tokio::time::sleep(pause) => self.in_flight.borrow().clone(),
            };
            if tokio::time::timeout(ROUND, self.check(suspects)).await.is_err() {
                tracing::warn!("could not look for cancelled runs: it took too long");
            }
        }
    }

    fn hears(&self, connected: bool) {
        self.connected.send_replace(connected);
        self.board.set_events_connected(connected);
    }

    fn subscribe(&self) -> EventStream {
        EventStream::subscribe(self.client.clone(), EVENTS, Some(self.pool.clone()))
    }

    /// The run that may have to end, if the event is about one.
    fn heard(&self, event: &Event) -> Option<FlowRunId> {
        if event.event != CANCELLING && event.event != CANCELLED {
            self.wake.now();
            return None;
        }
        event.resource.id()?.strip_prefix("prefect.flow-run.")?.parse().ok()
    }

    /// An event may be old and a record may have moved on: only what the server says now counts.
    async fn check(&self, suspects: BTreeSet<FlowRunId>) {
        let ours: Vec<FlowRunId> = suspects.intersection(&self.in_flight.borrow()).copied().collect();
        if ours.is_empty() {
            return;
        }
        let states = json!({"type": {"any_": ["CANCELLING", "CANCELLED"]}});
        let filter = json!({"flow_runs": {"id": {"any_": ours}, "state": states}});
        match self.client.filter_flow_runs(&filter).await {
            Ok(runs) => {
                for run in runs {
                    if self.found.send(run.id).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(error = chain(&error), "could not look for cancelled runs"),
        }
    }
}
