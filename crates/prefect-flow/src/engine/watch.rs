//! Notices that runs of this process were cancelled or suspended: by event, and by looking at them while there are none.
//!
//! An event is never believed alone: the server sends old ones again (contract §4.8). What counts is the
//! record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prefect_api::id::FlowRunId;
use prefect_api::state::StateType;
use prefect_client::Client;
use prefect_client::socket::{EventStream, Item};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Looks at the runs are so much rarer while the subscription stands.
const CALM: u32 = 6;
/// The states that are told by events. Others do not stop the work.
const STOPPING: [&str; 2] = ["prefect.flow-run.Cancelling", "prefect.flow-run.Suspended"];
/// The server gives at most so many records at once.
const PAGE: usize = 200;

/// Why work on a run is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is to be cancelled, and we are to say when it is.
    Cancelling,
    /// It is suspended: whoever resumes it has it run from the beginning.
    Suspended,
    /// Somebody else has finished it off as cancelled.
    Cancelled,
    /// The server does not know it any more.
    Gone,
}

/// Watches runs. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct CancelWatch {
    client: Client,
    poll: Duration,
    runs: Arc<Mutex<HashMap<FlowRunId, watch::Sender<Option<Stop>>>>>,
}

/// A run that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    id: FlowRunId,
    owner: CancelWatch,
    stop: watch::Receiver<Option<Stop>>,
}

impl Watched {
    /// Waits until the run is to stop. Cancel safe.
    pub(super) async fn stopped(&self) -> Stop {
        let mut stop = self.stop.clone();
        let found = stop.wait_for(Option::is_some).await.map(|stop| *stop);
        match found {
            Ok(Some(stop)) => stop,
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.owner.runs().remove(&self.id);
    }
}

impl CancelWatch {
    pub(super) fn new(client: Client, poll: Duration) -> Self {
        Self { client, poll, runs: Arc::default() }
    }

    pub(super) fn watch(&self, id: FlowRunId) -> Watched {
        let (sender, stop) = watch::channel(None);
        self.runs().insert(id, sender);
        Watched { id, owner: self.clone(), stop }
    }

    /// Watches until it is dropped.
    pub(super) async fn run(self) {
        let mut events = EventStream::subscribe(self.client.clone(), &STOPPING, None);
        let mut tick = tokio::time::interval(self.poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let (mut connected, mut was_lost, mut calm) = (false, false, 0);
        loop {
            tokio::select! {
                item = events.next() => match item {
                    Some(Item::Event(event)) => {
                        let id = event.resource.id().and_then(|id| id.strip_prefix("prefect.flow-run."));
                        let id = id.and_then(|id| id.parse().ok());
                        if let Some(id) = id.filter(|id| self.runs().contains_key(id)) {
                            self.look_at(&[id]).await;
                        }
                    }
                    Some(Item::Connected) => {
                        connected = true;
                        if std::mem::take(&mut was_lost) {
                            self.look_at_all().await;
                        }
                    }
                    Some(Item::Lost(_)) => (connected, was_lost) = (false, true),
                    None => return,
                },
                _ = tick.tick() => {
                    calm += 1;
                    if !connected || calm >= CALM {
                        calm = 0;
                        self.look_at_all().await;
                    }
                }
            }
        }
    }

    async fn look_at_all(&self) {
        let ids: Vec<FlowRunId> = self.runs().keys().copied().collect();
        for page in ids.chunks(PAGE) {
            self.look_at(page).await;
        }
    }

    async fn look_at(&self, ids: &[FlowRunId]) {
        let filter = json!({"flow_runs": {"id": {"any_": ids}}, "limit": PAGE});
        let found = match self.client.filter_flow_runs(&filter).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "the states of the runs could not be read");
                return;
            }
        };
        let found: HashMap<FlowRunId, _> =
            found.into_iter().map(|run| (run.id, (run.state_type, run.state_name))).collect();
        let runs = self.runs();
        for id in ids {
            let stop = match found.get(id) {
                None => Some(Stop::Gone),
                Some((Some(StateType::Cancelling), _)) => Some(Stop::Cancelling),
                Some((Some(StateType::Cancelled), name)) if name.as_deref() == Some("Cancelling") => {
                    Some(Stop::Cancelling)
                }
                Some((Some(StateType::Cancelled), _)) => Some(Stop::Cancelled),
                Some((Some(StateType::Paused), name)) if name.as_deref() == Some("Suspended") => {
                    Some(Stop::Suspended)
                }
                Some(_) => None,
            };
            if let (Some(stop), Some(run)) = (stop, runs.get(id)) {
                run.send_replace(Some(stop));
            }
        }
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, HashMap<FlowRunId, watch::Sender<Option<Stop>>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
