//! How far the runs have come: what the server counts, and what the programs witness.

use std::time::Duration;

use prefect_client::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::plan::Progress;
use crate::puppet::Shared;

const POLL: Duration = Duration::from_millis(200);
const ANSWER: Duration = Duration::from_secs(5);
/// A moment that does not come for so long, because nothing moves, is taken to be there.
pub(super) const STANDSTILL: Duration = Duration::from_secs(45);

/// How many runs have come how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) claims: usize,
    pub(super) starts: usize,
    pub(super) ends: usize,
}

impl Counts {
    fn of(self, progress: Progress) -> usize {
        match progress {
            Progress::Claims => self.claims,
            Progress::Starts => self.starts,
            Progress::Ends => self.ends,
        }
    }
}

/// Keeps the counts fresh, for ever.
pub(super) async fn observe(client: &Client, shared: &Shared, counts: &watch::Sender<Counts>) {
    loop {
        let mut now = *counts.borrow();
        if let Ok(read) = shared.witnesses() {
            now.starts = read.len();
        }
        // A server that is away says nothing: then the last numbers hold.
        let gone = json!({"not_any_": ["SCHEDULED"]});
        let ended = json!({"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]});
        if let (Some(claims), Some(ends)) = (count(client, &gone).await, count(client, &ended).await) {
            (now.claims, now.ends) = (claims, ends);
        }
        counts.send_if_modified(|counts| std::mem::replace(counts, now) != now);
        sleep(POLL).await;
    }
}

/// How many runs are in a state of these types.
async fn count(client: &Client, types: &Value) -> Option<usize> {
    let filter = json!({"flow_runs": {"state": {"type": types}}});
    let counted = timeout(ANSWER, client.post_json("flow_runs/count", &filter)).await.ok()?.ok()?;
    usize::try_from(counted.as_u64()?).ok()
}

/// Waits until so many have come so far, or until nothing has moved for a long time.
pub(super) async fn reached(mut counts: watch::Receiver<Counts>, progress: Progress, count: usize) {
    let mut last = Instant::now();
    while counts.borrow_and_update().of(progress) < count {
        match tokio::time::timeout_at(last + STANDSTILL, counts.changed()).await {
            Ok(Ok(())) => last = Instant::now(),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
