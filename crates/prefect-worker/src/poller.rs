//! Finds runs that are due, at the moment they are.
//!
//! Only a poll may be trusted with the limits of pool and queues; events only say when it is worth while. A
//! poll looks a little into the future, so that the next one can be made at the time of the next run. The
//! regular polls go on whatever the events do: subscriptions lose events, and sockets die silently.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::{FlowRun, PollScheduled};
use prefect_api::id::FlowRunId;
use prefect_client::Client;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::chain;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::status::{PoolBoard, Pulse, ROUND};

/// The least time between two polls: a burst of events makes few of them.
const SPACING: Duration = Duration::from_millis(100);
/// How long the event of a run that a regular poll brought may be late.
const LATE_EVENT: Duration = Duration::from_secs(2);
/// Regular polls are rarer while the events come.
const WITH_EVENTS: f64 = 1.5;

/// How much regular polls are earlier or later than they should be: workers are not to poll in step.
const JITTER: f64 = 0.3;

/// Asks the poller to look at once.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    notify: Notify,
    count: AtomicU64,
}

impl Wake {
    pub(crate) fn now(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.notify.notify_one();
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// How well the server's events come.
#[derive(Debug, Clone)]
pub(crate) struct Hearing {
    /// Whether the subscription stands.
    pub(crate) connected: watch::Receiver<bool>,
    /// Told when the subscription turns out to be deaf.
    pub(crate) deaf: Arc<Notify>,
}

/// Asks for due runs, again and again.
pub(crate) struct Poller {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pub(crate) due: mpsc::Sender<Vec<FlowRun>>,
    pub(crate) board: PoolBoard,
    pub(crate) metrics: Metrics,
    pub(crate) wake: Arc<Wake>,
    pub(crate) hearing: Hearing,
}

/// Why a poll is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Something happened.
    Woken,
    /// A run that was seen before is due now.
    Due,
    /// It was time.
    Regular,
}

/// What a poll brought.
struct Brought {
    due: Vec<FlowRun>,
    /// When the next of the others is due.
    next: Option<Instant>,
}

impl Poller {
    pub(crate) async fn run(self, stop: CancellationToken, pulse: Pulse) {
        let mut known = HashSet::new();
        let mut failures = 0_u32;
        let mut reason = Reason::Regular;
        let mut first = true;
        loop {
            pulse.beat();
            let started = Instant::now();
            let wakes = self.wake.count();
            let polled = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                polled = tokio::time::timeout(ROUND, self.poll()) => polled,
            };
            let Ok(polled) = polled else {
                failures += 1;
                tracing::warn!(failures, "could not poll for runs, trying again: it took too long");
                self.metrics.polled(&self.options.pool, false);
                continue;
            };
            let mut next = started + self.interval();
            self.metrics.polled(&self.options.pool, polled.is_ok());
            match polled {
                Ok(runs) => {
                    failures = 0;
                    self.board.polled();
                    let unannounced = runs.iter().any(|run| !known.contains(&run.id));
                    known = runs.iter().map(|run| run.id).collect::<HashSet<FlowRunId>>();
                    let brought = self.sort(runs);
                    if self.due.send(brought.due).await.is_err() || self.options.run_once {
                        return;
                    }
                    next = brought.next.map_or(next, |due| due.min(next));
                    if unannounced && reason == Reason::Regular && !first && *self.hearing.connected.borrow()
                    {
                        self.suspect(wakes);
                    }
                    first = false;
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = chain(&error), failures, "could not poll for runs, trying again");
                }
            }
            let regular = started + self.interval() <= next;
            reason = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => if regular { Reason::Regular } else { Reason::Due },
                () = self.wake.notify.notified() => {
                    tokio::time::sleep_until(started + SPACING).await;
                    Reason::Woken
                }
            };
        }
    }

    /// The longest time between two polls.
    pub(crate) fn longest_pause(&self) -> Duration {
        self.options.query.mul_f64(WITH_EVENTS * (1.0 + JITTER))
    }

    /// Time until the next regular poll.
    fn interval(&self) -> Duration {
        let connected = *self.hearing.connected.borrow();
        jittered(self.options.query.mul_f64(if connected { WITH_EVENTS } else { 1.0 }))
    }

    /// A regular poll brought a run that no event announced. Events may be a little late; if none comes, the
    /// subscription is deaf and has to be made anew.
    fn suspect(&self, wakes: u64) {
        let (wake, deaf) = (Arc::clone(&self.wake), Arc::clone(&self.hearing.deaf));
        tokio::spawn(async move {
            // A look later and nothing else: there is nothing to join for.
            tokio::time::sleep(LATE_EVENT).await;
            if wake.count() == wakes {
                tracing::info!("runs come without events: subscribing anew");
                deaf.notify_one();
            }
        });
    }

    /// Parts what is due from what only will be.
    fn sort(&self, runs: Vec<FlowRun>) -> Brought {
        let now = Timestamp::now();
        let horizon = later(now, self.options.prefetch);
        let (due, coming): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|run| run.next_scheduled_start_time.is_none_or(|at| at <= horizon));
        let next = coming.iter().filter_map(|run| run.next_scheduled_start_time).min();
        let next = next.and_then(|at| Duration::try_from(at.duration_since(horizon)).ok());
        Brought { due, next: next.map(|wait| Instant::now() + wait) }
    }

    async fn poll(&self) -> Result<Vec<FlowRun>, prefect_client::Error> {
        // As far as the next regular poll may be away.
        let ahead = self.options.prefetch + self.longest_pause();
        let request = PollScheduled {
            work_queue_names: self.options.queues.clone(),
            scheduled_before: later(Timestamp::now(), ahead),
            limit: None,
        };
        let runs = self.client.poll_scheduled(&self.options.pool, &request).await?;
        Ok(runs.into_iter().map(|scheduled| scheduled.flow_run).collect())
    }
}

fn later(moment: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::ZERO);
    moment.saturating_add(by).unwrap_or(moment)
}

/// `interval` give or take [`JITTER`].
fn jittered(interval: Duration) -> Duration {
    let [first, ..] = Uuid::new_v4().into_bytes();
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * f64::from(first) / 255.0)
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
