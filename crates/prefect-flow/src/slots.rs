//! Slots of concurrency limits for the tags of a task run (contract §7.3): taken before it runs, kept by
//! renewals, given back when the holder is dropped, however that comes about.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prefect_api::id::{LeaseId, TaskRunId};
use prefect_client::{Acquire, Client, Error};
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::engine::Patience;

/// How long the server keeps slots of a process that died.
const LEASE: Duration = Duration::from_mins(1);
/// When the lease is renewed.
const RENEW: Duration = Duration::from_secs(45);
/// When it is renewed after a renewal that got no answer.
const RENEW_SOON: Duration = Duration::from_secs(5);

/// What a task run got for its tags.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Slots.
    Held(Slots),
    /// No limit is set for any of the tags; `first` if this was not known before.
    Unlimited { first: bool },
}

/// Slots, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Slots {
    _release: DropGuard,
}

/// Takes slots. Knows which tags have no limits.
#[derive(Debug)]
pub(crate) struct TagLimits {
    client: Client,
    patience: Arc<Patience>,
    tasks: TaskTracker,
    /// Sets of tags without any limit: asked about once in a process.
    unlimited: Mutex<HashSet<Vec<String>>>,
}

impl TagLimits {
    pub(crate) fn new(client: Client, patience: Arc<Patience>, tasks: TaskTracker) -> Self {
        Self { client, patience, tasks, unlimited: Mutex::default() }
    }

    /// Takes one slot of every limit of these tags, and waits until they are free. Cancel safe: a lease that
    /// is granted while nobody waits any more is given back.
    pub(crate) async fn take(&self, tags: &[String], task_run: TaskRunId) -> Result<Taken, Error> {
        let mut names: Vec<String> = tags.iter().map(|tag| format!("tag:{tag}")).collect();
        names.sort();
        names.dedup();
        if self.unlimited().contains(&names) {
            return Ok(Taken::Unlimited { first: false });
        }
        let (client, patience, tasks) = (self.client.clone(), Arc::clone(&self.patience), self.tasks.clone());
        let asked = names.clone();
        let wanted = CancellationToken::new();
        let unwanted = wanted.clone().drop_guard();
        // In a task of its own: when the caller goes away in the middle of the call, nobody would know the lease.
        let taking = self.tasks.spawn(async move {
            let lease = acquire(&client, &patience, &asked, task_run, &wanted).await?;
            let Some(lease) = lease else { return Ok(None) };
            tasks.spawn(keep(client, patience, lease, wanted));
            Ok(Some(()))
        });
        let granted = match taking.await {
            Ok(granted) => granted?.is_some(),
            Err(error) => {
                tracing::error!(%error, "taking concurrency slots broke");
                false
            }
        };
        if granted {
            return Ok(Taken::Held(Slots { _release: unwanted }));
        }
        Ok(Taken::Unlimited { first: self.unlimited().insert(names) })
    }

    fn unlimited(&self) -> std::sync::MutexGuard<'_, HashSet<Vec<String>>> {
        self.unlimited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lease; `None` if none of the limits exists, or nobody wants it any more.
async fn acquire(
    client: &Client,
    patience: &Patience,
    names: &[String],
    task_run: TaskRunId,
    unwanted: &CancellationToken,
) -> Result<Option<LeaseId>, Error> {
    let holder = json!({"type": "task_run", "id": task_run});
    let mut failures = 0;
    while !unwanted.is_cancelled() {
        let pause = match client.acquire_slots(names, 1, LEASE, Some(&holder)).await {
            Ok(Acquire::Granted(lease)) if lease.limits.is_empty() => return Ok(None),
            Ok(Acquire::Granted(lease)) => return Ok(Some(lease.lease_id)),
            Ok(Acquire::Full { retry_after }) => retry_after,
            // A task must not run without its slots, nor fail because the server is away.
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, ?names, "no answer to a request for concurrency slots");
                failures += 1;
                patience.pause(failures)
            }
            Err(error) => return Err(error),
        };
        if unwanted.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
    }
    Ok(None)
}

/// Renews a lease until nobody wants it, then gives it back.
async fn keep(client: Client, patience: Arc<Patience>, lease: LeaseId, unwanted: CancellationToken) {
    let mut pause = RENEW;
    while unwanted.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        pause = RENEW;
        if let Some(Err(error)) = unwanted.run_until_cancelled(client.renew_lease(lease, LEASE)).await {
            // A task that runs is not stopped because its slots were given away, as in Prefect.
            tracing::warn!(%error, %lease, "a lease on concurrency slots was not renewed");
            if !error.is_transient() {
                break;
            }
            pause = RENEW_SOON;
        }
    }
    unwanted.cancelled().await;
    if let Err(error) = patience.insist("release concurrency slots", || client.release_lease(lease)).await {
        tracing::warn!(%error, %lease, "concurrency slots were not released; they expire within a minute");
    }
}
