//! Finds the runs of served deployments that are due.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::event::Event;
use prefect_api::id::{DeploymentId, FlowRunId};
use prefect_client::Client;
use prefect_client::socket::{EventStream, Item};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Stop;
use super::child::Child;
use crate::engine::Patience;
use crate::error::chain;

/// How early a run is claimed; its process waits for its time.
const PREFETCH: SignedDuration = SignedDuration::from_secs(10);
/// The least time between two polls.
const SPACING: Duration = Duration::from_millis(100);
/// The states in which a run waits to be claimed.
const WAITING: &[&str] = &[
    "prefect.flow-run.Scheduled",
    "prefect.flow-run.AwaitingRetry",
    "prefect.flow-run.AwaitingConcurrencySlot",
    "prefect.flow-run.Resuming",
];

/// Runs the runs of some deployments.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) client: Client,
    pub(super) deployments: Vec<DeploymentId>,
    /// The most runs at a time.
    pub(super) limit: usize,
    /// Time between two polls.
    pub(super) poll: Duration,
    pub(super) program: PathBuf,
    pub(super) patience: Arc<Patience>,
    pub(super) stop: Stop,
}

impl Runner {
    /// Until it is asked to stop and its runs have ended.
    pub(super) async fn run(self) {
        let mut events = EventStream::subscribe(self.client.clone(), WAITING, self.resource());
        let mut children = JoinSet::new();
        let mut at_work = HashSet::new();
        let mut last_poll = Instant::now();
        let mut next_poll = last_poll;
        let mut is_away = false;
        loop {
            tokio::select! {
                biased;
                () = self.stop.asked.cancelled() => break,
                Some(ended) = children.join_next() => {
                    if let Ok(id) = ended {
                        at_work.remove(&id);
                    }
                    next_poll = last_poll + SPACING;
                }
                () = tokio::time::sleep_until(next_poll) => {
                    last_poll = Instant::now();
                    next_poll = last_poll + self.poll;
                    let Some(due) = self.stop.asked.run_until_cancelled(self.due(&mut is_away)).await else { break };
                    for id in due {
                        if at_work.len() < self.limit && at_work.insert(id) {
                            children.spawn(self.child(id).run());
                        }
                    }
                }
                Some(item) = events.next() => if self.concerns_us(&item) {
                    next_poll = next_poll.min(last_poll + SPACING);
                },
            }
        }
        // The children have been asked to end as we have.
        while children.join_next().await.is_some() {}
    }

    /// The runs that are due, in their order. None while the server is away.
    async fn due(&self, is_away: &mut bool) -> Vec<FlowRunId> {
        match self.client.poll_deployments(&self.deployments, Timestamp::now() + PREFETCH).await {
            Ok(mut due) => {
                *is_away = false;
                due.sort_by_key(|run| {
                    (run.next_scheduled_start_time.is_none(), run.next_scheduled_start_time)
                });
                due.into_iter().map(|run| run.id).collect()
            }
            Err(error) => {
                if !std::mem::replace(is_away, true) {
                    tracing::warn!(error = chain(&error), "could not ask for runs, trying again");
                }
                Vec::new()
            }
        }
    }

    fn child(&self, id: FlowRunId) -> Child {
        Child {
            client: self.client.clone(),
            program: self.program.clone(),
            id,
            patience: Arc::clone(&self.patience),
            stop: self.stop.clone(),
        }
    }

    /// What events are about; a subscription is to one resource or to all.
    fn resource(&self) -> Option<String> {
        match self.deployments.as_slice() {
            [one] => Some(resource(*one)),
            _ => None,
        }
    }

    /// Whether there may be a run to claim now.
    fn concerns_us(&self, item: &Item) -> bool {
        match item {
            Item::Connected => true,
            Item::Event(event) => is_about(event, &self.deployments),
            Item::Lost(error) => {
                tracing::debug!(error = chain(error), "no events, polling instead");
                false
            }
        }
    }
}

fn resource(deployment: DeploymentId) -> String {
    format!("prefect.deployment.{deployment}")
}

fn is_about(event: &Event, deployments: &[DeploymentId]) -> bool {
    let ids: Vec<&str> = event.related.iter().filter_map(|related| related.id()).collect();
    deployments.iter().any(|deployment| ids.contains(&resource(*deployment).as_str()))
}
