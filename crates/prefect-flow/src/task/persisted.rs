//! Tasks whose results are stored.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Done, Submitted, Task, on_a_thread};
use crate::context::Context;
use crate::error::{BoxError, TaskError};
use crate::results::{Cache, Codec};

/// A task whose result is stored, so that it outlives the run; made by [`Task::persist_result`] or [`Task::cached`].
#[derive(Debug)]
#[must_use = "a task does nothing until it is run or submitted"]
pub struct Persisted {
    pub(super) task: Task,
    pub(super) cache: Cache,
}

/// How the result of a task is kept.
pub(super) struct Keep<T> {
    pub(super) codec: Codec<T>,
    pub(super) cache: Cache,
}

impl Persisted {
    /// Runs it here, like [`Task::run`].
    pub async fn run<T, E, F, R>(self, body: F) -> Result<Done<T>, TaskError>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        T: Serialize + DeserializeOwned,
        E: Into<BoxError>,
    {
        let keep = Keep { codec: Codec::json(), cache: self.cache };
        self.task.run_kept(body, Some(keep)).await
    }

    /// Starts it at once, beside the flow, like [`Task::submit`].
    pub fn submit<T, E, F, R>(self, body: F) -> Submitted<T>
    where
        F: FnMut(Context) -> R + Send + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<BoxError>,
    {
        let keep = Keep { codec: Codec::json(), cache: self.cache };
        self.task.submit_kept(body, Some(keep))
    }

    /// Runs it on a thread of its own, like [`Task::run_blocking`].
    pub async fn run_blocking<T, E, F>(self, body: F) -> Result<Done<T>, TaskError>
    where
        F: Fn(Context) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<BoxError>,
    {
        self.run(on_a_thread(body)).await
    }
}
