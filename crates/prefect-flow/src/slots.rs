//! Slots of concurrency limits (contract §7.2, §7.3): for the tags of a task run, and for what a flow asks for itself.
//! Taken before the work, kept by renewals, given back when the holder is dropped, however that comes about.
//!
//! A server keeps leases in memory: restarted, it still counts the slots but knows nobody who holds them. They are then
//! taken under a new lease where there is a free one, and else given back by name. It says so only to whoever renews a
//! lease, hence a lease is renewed before it is given back.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prefect_api::id::{LeaseId, TaskRunId};
use prefect_client::{Acquire, Client, Error};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::engine::Patience;
use crate::error::chain;

/// How long the server keeps slots for tags of a process that died.
const TAG_LEASE: Duration = Duration::from_mins(1);
/// The same for limits that a flow names.
const LEASE: Duration = Duration::from_mins(5);
/// When a lease is renewed after a renewal that got no answer.
const RENEW_SOON: Duration = Duration::from_secs(5);

/// What was taken.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Slots.
    Held(Slots),
    /// None of the limits exists; `first` if this was not known before.
    Unlimited { first: bool },
}

/// Slots of concurrency limits, held until this is dropped; made by [`crate::Context::concurrency`].
#[derive(Debug)]
#[must_use = "the slots are given back when this is dropped"]
pub struct Slots {
    _release: Option<DropGuard>,
}

impl Slots {
    /// Of limits that do not exist: nothing is held.
    pub(crate) const fn none() -> Self {
        Self { _release: None }
    }
}

/// Slots that are asked for.
#[derive(Debug, Clone)]
struct Wanted {
    names: Vec<String>,
    slots: u32,
    lease: Duration,
    renew_after: Duration,
    /// The run that holds them, as the server shows it.
    holder: Value,
}

/// Takes slots. Knows which tags have no limits.
#[derive(Debug)]
pub(crate) struct Limits {
    client: Client,
    patience: Arc<Patience>,
    tasks: TaskTracker,
    /// The part of a lease's time after which it is renewed.
    renew_after: f64,
    /// Sets of tags without any limit: asked about once in a process.
    unlimited: Mutex<HashSet<Vec<String>>>,
}

impl Limits {
    pub(crate) fn new(client: Client, patience: Arc<Patience>, tasks: TaskTracker, renew_after: f64) -> Self {
        Self { client, patience, tasks, renew_after, unlimited: Mutex::default() }
    }

    /// Takes one slot of every limit of these tags, and waits until they are free. Cancel safe: a lease that
    /// is granted while nobody waits any more is given back.
    pub(crate) async fn take_tags(&self, tags: &[String], task_run: TaskRunId) -> Result<Taken, Error> {
        let mut names: Vec<String> = tags.iter().map(|tag| format!("tag:{tag}")).collect();
        names.sort();
        names.dedup();
        if self.unlimited().contains(&names) {
            return Ok(Taken::Unlimited { first: false });
        }
        let holder = json!({"type": "task_run", "id": task_run});
        let wanted = self.wanted(names.clone(), 1, TAG_LEASE, holder);
        match self.acquire(wanted).await? {
            Some(slots) => Ok(Taken::Held(slots)),
            None => Ok(Taken::Unlimited { first: self.unlimited().insert(names) }),
        }
    }

    /// Takes so many slots of every named limit, and waits until they are free; `None` if none of them exists. Cancel
    /// safe.
    pub(crate) async fn take(
        &self,
        names: Vec<String>,
        slots: u32,
        holder: Value,
    ) -> Result<Option<Slots>, Error> {
        self.acquire(self.wanted(names, slots, LEASE, holder)).await
    }

    fn wanted(&self, names: Vec<String>, slots: u32, lease: Duration, holder: Value) -> Wanted {
        Wanted { names, slots, lease, renew_after: lease.mul_f64(self.renew_after), holder }
    }

    /// Takes so many slots of every named limit, which come back by themselves, and waits until they are free. `false`
    /// if none of the limits exists.
    pub(crate) async fn take_rate(&self, names: &[String], slots: u32) -> Result<bool, Error> {
        let mut failures = 0;
        loop {
            let pause = match self.client.take_rate(names, slots).await {
                Ok(Acquire::Granted(lease)) => return Ok(!lease.is_empty()),
                Ok(Acquire::Full { retry_after }) => retry_after,
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, ?names, "no answer to a request for a rate limit");
                    failures += 1;
                    self.patience.pause(failures)
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn acquire(&self, wanted: Wanted) -> Result<Option<Slots>, Error> {
        let (client, patience, tasks) = (self.client.clone(), Arc::clone(&self.patience), self.tasks.clone());
        let needed = CancellationToken::new();
        let release = needed.clone().drop_guard();
        // In a task of its own: when the caller goes away in the middle of the call, nobody would know the lease.
        let taking = self.tasks.spawn(async move {
            let keeper = Keeper::acquire(client, patience, wanted, &needed).await?;
            Ok(keeper.map(|keeper| drop(tasks.spawn(keeper.keep(needed)))))
        });
        let granted = match taking.await {
            Ok(granted) => granted?.is_some(),
            Err(error) => {
                tracing::error!(%error, "taking concurrency slots broke");
                false
            }
        };
        Ok(granted.then_some(Slots { _release: Some(release) }))
    }

    fn unlimited(&self) -> std::sync::MutexGuard<'_, HashSet<Vec<String>>> {
        self.unlimited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds slots at the server.
struct Keeper {
    client: Client,
    patience: Arc<Patience>,
    /// The names are those of limits that exist.
    wanted: Wanted,
    /// The lease, unless the server has forgotten it.
    lease: Option<LeaseId>,
    /// The server keeps the lease at least until then.
    expires: Instant,
    /// The server counts slots as ours that belong to no lease.
    forgotten: bool,
}

impl Keeper {
    /// Waits until slots are free. `None` if none of the limits exists, or nobody wants them any more (then `unwanted`
    /// has fired).
    async fn acquire(
        client: Client,
        patience: Arc<Patience>,
        mut wanted: Wanted,
        unwanted: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        let mut failures = 0;
        while !unwanted.is_cancelled() {
            let expires = Instant::now() + wanted.lease;
            let Wanted { names, slots, lease, holder, .. } = &wanted;
            let pause = match client.acquire_slots(names, *slots, *lease, Some(holder)).await {
                Ok(Acquire::Granted(lease)) if lease.limits.is_empty() => return Ok(None),
                Ok(Acquire::Granted(lease)) => {
                    wanted.names = lease.limits.into_iter().map(|limit| limit.name).collect();
                    let lease = Some(lease.lease_id);
                    return Ok(Some(Self { client, patience, wanted, lease, expires, forgotten: false }));
                }
                Ok(Acquire::Full { retry_after }) => retry_after,
                // Work must not begin without its slots, nor fail because the server is away.
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

    /// Renews the lease until nobody wants the slots, then gives them back.
    async fn keep(mut self, unwanted: CancellationToken) {
        let mut pause = self.wanted.renew_after;
        while unwanted.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = match self.lease {
                Some(lease) => match unwanted.run_until_cancelled(self.renew(lease)).await {
                    Some(pause) => pause,
                    None => break,
                },
                None => Duration::ZERO,
            };
            if self.lease.is_none() {
                // Not given up half-way: nobody would know the lease.
                self.regain().await;
                pause = self.wanted.renew_after;
            }
        }
        unwanted.cancelled().await;
        self.release().await;
    }

    /// Renews the lease. Gives the time until the next renewal.
    async fn renew(&mut self, lease: LeaseId) -> Duration {
        let expires = Instant::now() + self.wanted.lease;
        let Err(error) = self.client.renew_lease(lease, self.wanted.lease).await else {
            self.expires = expires;
            return self.wanted.renew_after;
        };
        let names = &self.wanted.names;
        // Work that is being done is not stopped because its slots were given away, as in Prefect.
        tracing::warn!(error = chain(&error), ?names, "a lease on concurrency slots was not renewed");
        if is_gone(&error) {
            self.lease_is_gone();
        }
        if error.is_transient() { RENEW_SOON } else { self.wanted.renew_after }
    }

    /// Takes slots under a new lease, if there are free ones, and gives those back that have none.
    async fn regain(&mut self) {
        let expires = Instant::now() + self.wanted.lease;
        let Wanted { names, slots, lease, holder, .. } = &self.wanted;
        match self.client.acquire_slots(names, *slots, *lease, Some(holder)).await {
            Ok(Acquire::Granted(granted)) => {
                if !granted.limits.is_empty() {
                    self.lease = Some(granted.lease_id);
                    self.expires = expires;
                }
                self.release_forgotten().await;
            }
            Ok(Acquire::Full { .. }) => tracing::debug!(?names, "no free slots for a new lease yet"),
            Err(error) => {
                tracing::warn!(error = chain(&error), ?names, "concurrency slots are held without a lease");
            }
        }
    }

    async fn release(mut self) {
        if let Some(lease) = self.lease {
            let renew = || self.client.renew_lease(lease, self.wanted.lease);
            let renewed = self.patience.insist("renew a lease on concurrency slots", renew).await;
            if renewed.is_err_and(|error| is_gone(&error)) {
                self.lease_is_gone();
            }
        }
        self.release_forgotten().await;
        let Some(lease) = self.lease else { return };
        let release = || self.client.release_lease(lease);
        if let Err(error) = self.patience.insist("release concurrency slots", release).await {
            let seconds = self.wanted.lease.as_secs();
            tracing::warn!(%error, %lease, seconds, "concurrency slots were not released; they will expire");
        }
    }

    /// The server does not know the lease any more.
    fn lease_is_gone(&mut self) {
        self.lease = None;
        // If it has not expired, nobody has given its slots away.
        self.forgotten = Instant::now() < self.expires;
    }

    async fn release_forgotten(&mut self) {
        if !std::mem::take(&mut self.forgotten) {
            return;
        }
        let Wanted { names, slots, .. } = &self.wanted;
        let release = || self.client.release_slots(names, *slots);
        if let Err(error) = self.patience.insist("release concurrency slots by name", release).await {
            let error = chain(&error);
            tracing::warn!(
                error,
                ?names,
                "concurrency slots were not released; reset the limits' active slots"
            );
        }
    }
}

/// Whether the server does not know a lease.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error.status(), Some(404 | 410))
}
