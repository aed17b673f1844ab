//! Bringing offline objects (Glacier classes, tape) online and waiting until they can be read.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::progress::Meter;
use crate::{ObjectAddress, ObjectInfo, ObjectStore, RestoreState, StoreError};

/// Objects asked about at once.
const CONCURRENCY: usize = 8;

/// The first wait before asking again: tests and fast stores restore at once.
const FIRST_POLL: Duration = Duration::from_secs(1);

/// How offline objects are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreSettings {
    /// For how many days a restored object stays readable.
    pub days: u32,
    /// Longest wait before asking again whether an object can be read; the first is a second, each further one
    /// twice as long as the one before.
    pub poll: Duration,
    /// How long a restore may take; bulk retrievals from deep archives take up to two days.
    pub deadline: Duration,
}

impl Default for RestoreSettings {
    fn default() -> Self {
        Self { days: 7, poll: Duration::from_mins(1), deadline: Duration::from_hours(48) }
    }
}

/// Why an object could not be made readable.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is not there.
    #[error("restore {address}: it is not in the store")]
    Missing {
        /// The object.
        address: ObjectAddress,
    },
    /// It took too long.
    #[error("restore {address}: it is still offline after {} hours", deadline.as_secs() / 3600)]
    TimedOut {
        /// The object.
        address: ObjectAddress,
        /// The time allowed.
        deadline: Duration,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run was cancelled.
    #[error("finish restoring: the run was cancelled")]
    Cancelled,
}

impl RestoreError {
    /// Whether it may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::TimedOut { .. }) || matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// Asks for the object to be restored if it needs that. Gives its state from before.
pub(crate) async fn request(
    store: &dyn ObjectStore,
    address: &ObjectAddress,
    days: u32,
) -> Result<ObjectInfo, RestoreError> {
    let info =
        store.head(address).await?.ok_or_else(|| RestoreError::Missing { address: address.clone() })?;
    if info.restore == RestoreState::Offline {
        store.request_restore(address, days).await?;
    }
    Ok(info)
}

/// Makes all objects (with their sizes, for the meter) readable.
pub(crate) async fn make_readable(
    store: &dyn ObjectStore,
    objects: Vec<(ObjectAddress, u64)>,
    settings: &RestoreSettings,
    cancel: &CancellationToken,
    meter: &Meter,
) -> Result<(), RestoreError> {
    let deadline = Instant::now() + settings.deadline;
    let mut waiting = Vec::new();
    let mut requests = stream::iter(objects)
        .map(|(address, size)| async move {
            let info = request(store, &address, settings.days).await?;
            Ok::<_, RestoreError>((address, size, info.restore))
        })
        .buffer_unordered(CONCURRENCY);
    while let Some((address, size, state)) = next(&mut requests, cancel).await? {
        if state.is_readable() { meter.add(size, 1) } else { waiting.push((address, size)) }
    }
    drop(requests);

    for (address, size) in waiting {
        wait_until_readable(store, &address, settings, deadline, cancel).await?;
        meter.add(size, 1);
    }
    Ok(())
}

async fn next<T>(
    items: &mut (impl futures_util::Stream<Item = Result<T, RestoreError>> + Unpin + Send),
    cancel: &CancellationToken,
) -> Result<Option<T>, RestoreError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RestoreError::Cancelled),
        item = items.try_next() => item,
    }
}

async fn wait_until_readable(
    store: &dyn ObjectStore,
    address: &ObjectAddress,
    settings: &RestoreSettings,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<(), RestoreError> {
    let mut wait = FIRST_POLL.min(settings.poll);
    loop {
        // A store that forgets a request is asked again.
        if request(store, address, settings.days).await?.restore.is_readable() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(RestoreError::TimedOut { address: address.clone(), deadline: settings.deadline });
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(RestoreError::Cancelled),
            () = sleep(wait) => {}
        }
        wait = (2 * wait).min(settings.poll);
    }
}
