//! Task runs as others see them: results, and dependencies between them.

use std::fmt::{self, Display, Formatter};
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context as Waker, Poll};

use prefect_api::id::TaskRunId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{TaskCause, TaskError, panic_message};

/// How a task run ended, for those that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not yet.
    Open,
    /// Completed.
    Completed,
    /// In any other way.
    Other,
}

/// A task run that others may wait for: a task's, or the one that stands for a subflow.
#[derive(Debug, Clone)]
pub struct Handle {
    id: TaskRunId,
    outcome: watch::Receiver<Outcome>,
}

/// Tells those who hold the [`Handle`] how it ended. Dropped before, it counts as not completed.
pub(crate) type Ended = watch::Sender<Outcome>;

impl Handle {
    pub(crate) fn new(id: TaskRunId) -> (Ended, Self) {
        let (ended, outcome) = watch::channel(Outcome::Open);
        (ended, Self { id, outcome })
    }

    /// The task run's id.
    pub const fn id(&self) -> TaskRunId {
        self.id
    }

    /// Waits for the end; whether it completed.
    pub(crate) async fn completed(&self) -> bool {
        let mut outcome = self.outcome.clone();
        outcome
            .wait_for(|outcome| *outcome != Outcome::Open)
            .await
            .is_ok_and(|end| *end == Outcome::Completed)
    }
}

/// What a task can wait for.
pub trait Upstream {
    /// Its task run.
    fn handle(&self) -> &Handle;
}

impl Upstream for Handle {
    fn handle(&self) -> &Handle {
        self
    }
}

impl<T> Upstream for Done<T> {
    fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl<T> Upstream for Submitted<T> {
    fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Upstream for TaskError {
    fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl<T: Upstream, E: Upstream> Upstream for Result<T, E> {
    fn handle(&self) -> &Handle {
        match self {
            Ok(done) => done.handle(),
            Err(error) => error.handle(),
        }
    }
}

/// The result of a task or subflow, together with its run, so that others can depend on it.
#[derive(Debug, Clone)]
pub struct Done<T> {
    /// The result.
    pub value: T,
    pub(crate) handle: Handle,
}

impl<T> Done<T> {
    /// The result alone.
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> Deref for Done<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// As its result is shown.
impl<T: Display> Display for Done<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// A task that runs beside the flow; a future of its result. Dropped, it goes on.
#[derive(Debug)]
pub struct Submitted<T> {
    name: String,
    handle: Handle,
    join: JoinHandle<Option<Result<Done<T>, TaskError>>>,
}

impl<T> Submitted<T> {
    pub(crate) const fn new(
        name: String,
        handle: Handle,
        join: JoinHandle<Option<Result<Done<T>, TaskError>>>,
    ) -> Self {
        Self { name, handle, join }
    }
}

impl<T> Future for Submitted<T> {
    type Output = Result<Done<T>, TaskError>;

    fn poll(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<Self::Output> {
        let joined = std::task::ready!(Pin::new(&mut self.join).poll(waker));
        let cause = match joined {
            Ok(Some(result)) => return Poll::Ready(result),
            Err(error) if error.is_panic() => TaskCause::Panicked(panic_message(&*error.into_panic())),
            Ok(None) | Err(_) => TaskCause::Cancelled,
        };
        let (name, handle) = (self.name.clone(), self.handle.clone());
        Poll::Ready(Err(TaskError { name, handle, cause }))
    }
}
