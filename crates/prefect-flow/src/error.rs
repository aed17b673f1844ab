//! What can go wrong for the author of a flow, and how a chain of causes becomes one line.

use std::error::Error;
use std::time::Duration;

use prefect_api::id::{FlowRunId, TaskRunId};

use crate::parameters::ParameterError;
use crate::task::Handle;

/// Any error of a flow or a task.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The message of an error and of all its causes, in one line. A message that the one before it ends with
/// already is not repeated.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// A panic's message.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// The run was cancelled while it waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run was cancelled")]
pub struct Cancelled;

/// A task that did not complete.
#[derive(Debug, thiserror::Error)]
#[error("run task '{name}'")]
pub struct TaskError {
    pub(crate) name: String,
    pub(crate) handle: Handle,
    #[source]
    pub(crate) cause: TaskCause,
}

impl TaskError {
    /// The task run's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why.
    pub const fn cause(&self) -> &TaskCause {
        &self.cause
    }

    /// The error of the task's own code, if it is an `E`.
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        match &self.cause {
            TaskCause::Failed(error) => error.downcast_ref(),
            _ => None,
        }
    }
}

/// Why a task did not complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskCause {
    /// Its code returned an error, in the last attempt.
    #[error(transparent)]
    Failed(BoxError),
    /// It took too long, in the last attempt.
    #[error("the task run exceeded its timeout of {} second(s)", .0.as_secs_f64())]
    TimedOut(Duration),
    /// Its code panicked; that is not tried again.
    #[error("the task panicked: {0}")]
    Panicked(String),
    /// It did not start, because one that it waits for did not complete.
    #[error("upstream task run '{upstream}' did not complete")]
    NotReady {
        /// The one that it waits for.
        upstream: TaskRunId,
    },
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
    /// The server refuses the slots that its tags call for.
    #[error("acquire concurrency slots for the tags {tags:?}")]
    Slots {
        /// The tags.
        tags: Vec<String>,
        /// Why.
        source: prefect_client::Error,
    },
}

/// A subflow that did not complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubflowError {
    /// Its parameters are not what it takes; nothing was started.
    #[error("start subflow '{flow}'")]
    Parameters {
        /// The flow.
        flow: String,
        /// What is wrong.
        source: ParameterError,
    },
    /// One that it waits for did not complete; nothing was started.
    #[error("start subflow '{flow}': upstream task run '{upstream}' did not complete")]
    NotReady {
        /// The flow.
        flow: String,
        /// The one that it waits for.
        upstream: TaskRunId,
    },
    /// The server did not take its records or states.
    #[error("report subflow '{flow}'")]
    Report {
        /// The flow.
        flow: String,
        /// Why.
        source: prefect_client::Error,
    },
    /// Its code returned an error.
    #[error("run subflow '{run}' of flow '{flow}'")]
    Failed {
        /// The flow.
        flow: String,
        /// The run's name.
        run: String,
        /// The run's id.
        id: FlowRunId,
        /// Its error.
        source: BoxError,
    },
    /// It ended otherwise: cancelled, crashed, paused.
    #[error("run subflow '{run}' of flow '{flow}': {reason}")]
    Ended {
        /// The flow.
        flow: String,
        /// The run's name.
        run: String,
        /// The run's id.
        id: FlowRunId,
        /// How.
        reason: String,
    },
}

/// A variable or a secret that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The server does not give it.
    #[error("read {kind} '{name}'")]
    Unreadable {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: prefect_client::Error,
    },
    /// There is none of that name.
    #[error("read {kind} '{name}': the Prefect server has none of that name")]
    Missing {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Its value is not what the flow takes. Of a secret the value is not told.
    #[error("read {kind} '{name}': at `{path}`: {problem}")]
    Malformed {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where in the value.
        path: String,
        /// What is wrong there.
        problem: String,
    },
}

/// Slots of concurrency limits that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The server refuses: there are not so many, or the limit gives none back by itself where a rate is asked for.
    #[error("take {slots} slot(s) of the concurrency limits {names:?}")]
    Refused {
        /// The limits.
        names: Vec<String>,
        /// How many of each.
        slots: u32,
        /// Why.
        source: prefect_client::Error,
    },
    /// The run was cancelled while it waited.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// An artifact that the server would refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The key has characters that are not allowed.
    #[error("create artifact '{key}': a key holds lower-case letters, digits and dashes only")]
    Key {
        /// The key.
        key: String,
    },
    /// The rows of a table cannot be written as JSON.
    #[error("create artifact '{key}'")]
    Table {
        /// The key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// An event that the server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// It is not said what it happened to.
    #[error("emit event '{event}': its resource has no label `prefect.resource.id`")]
    Resource {
        /// The event's name.
        event: String,
    },
    /// It is not said what a related resource is, or in which role.
    #[error(
        "emit event '{event}': a related resource has no label `prefect.resource.id` or `prefect.resource.role`"
    )]
    Related {
        /// The event's name.
        event: String,
    },
    /// It is too large.
    #[error("emit event '{event}': it has {size} bytes as JSON, and servers take {limit}")]
    Size {
        /// The event's name.
        event: String,
        /// Its size in bytes.
        size: usize,
        /// The largest size in bytes.
        limit: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        cause: Option<Box<Self>>,
    }

    #[test]
    fn a_chain_is_one_line_without_repetitions() {
        let inner = Layer { text: "connection refused", cause: None };
        let middle = Layer { text: "send: connection refused", cause: Some(Box::new(inner)) };
        let outer = Layer { text: "upload part 3", cause: Some(Box::new(middle)) };
        assert_eq!(chain(&outer), "upload part 3: send: connection refused");
    }
}
