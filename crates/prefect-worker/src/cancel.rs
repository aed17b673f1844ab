//! Finds out which of our runs are to be cancelled: from events, and by looking, since events get lost.

use std::collections::BTreeSet;
use std::time::Duration;

use prefect_api::id::FlowRunId;
use prefect_client::Client;
use prefect_client::socket::{EventStream, Item};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::chain;

const EVENTS: &[&str] = &["prefect.flow-run.Cancelling"];
/// Time between two looks while there are no events.
const BLIND_POLL: Duration = Duration::from_secs(10);

/// Watches the runs in `in_flight` and names those that the server says are CANCELLING.
pub(crate) struct Watcher {
    pub(crate) client: Client,
    /// The resource id of the pool whose events are watched.
    pub(crate) pool: String,
    pub(crate) in_flight: watch::Receiver<BTreeSet<FlowRunId>>,
    pub(crate) poll: Duration,
    pub(crate) found: mpsc::Sender<FlowRunId>,
}

impl Watcher {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut events = EventStream::subscribe(self.client.clone(), EVENTS, Some(self.pool.clone()));
        let mut connected = false;
        loop {
            let pause = if connected { self.poll } else { self.poll.min(BLIND_POLL) };
            let suspects = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                item = events.next() => match item {
                    Some(Item::Event(event)) => event
                        .resource
                        .id()
                        .and_then(|id| id.strip_prefix("prefect.flow-run.")?.parse().ok())
                        .into_iter()
                        .collect(),
                    Some(Item::Connected) => {
                        connected = true;
                        self.in_flight.borrow().clone()
                    }
                    Some(Item::Lost(error)) => {
                        tracing::debug!(error = chain(&error), "no events of cancellations, looking for them instead");
                        connected = false;
                        continue;
                    }
                    None => return,
                },
                () = tokio::time::sleep(pause) => self.in_flight.borrow().clone(),
            };
            self.check(suspects).await;
        }
    }

    /// An event may be old and a record may have moved on: only what the server says now counts.
    async fn check(&self, suspects: BTreeSet<FlowRunId>) {
        let ours: Vec<FlowRunId> = suspects.intersection(&self.in_flight.borrow()).copied().collect();
        if ours.is_empty() {
            return;
        }
        let filter =
            json!({"flow_runs": {"id": {"any_": ours}, "state": {"type": {"any_": ["CANCELLING"]}}}});
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
