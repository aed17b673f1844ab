//! The worker's control socket: one JSON line asks, one JSON line answers. It works in images without a shell
//! and without a network port, and only for the user (or root) that runs the worker.

mod client;
mod directory;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use client::{Chosen, find};
pub(crate) use server::Control;

use crate::health::Report;
use crate::status::Status;

/// The longest request, in bytes.
const LONGEST_REQUEST: u64 = 4096;
/// The longest answer, in bytes: thousands of runs fit in.
const LONGEST_REPLY: u64 = 16 * 1024 * 1024;
/// How long a request may take to come, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// What the worker is doing.
    Status,
    /// Whether it is well.
    Health,
    /// Claim no more, and leave when the runs have ended, or after a time.
    Drain {
        /// Seconds after which it leaves all the same.
        #[serde(default)]
        deadline_seconds: Option<u64>,
    },
    /// Leave, as after SIGTERM.
    Stop,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Health`].
    Health(Report),
    /// The worker will do so. The connection stays until its process ends.
    Accepted,
    /// The request was not understood, or cannot be met.
    Error(String),
}

/// An end that somebody outside asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownRequest {
    /// How to end.
    pub mode: ShutdownMode,
    /// The time after which runs are left to the next worker all the same.
    pub deadline: Option<Duration>,
}

/// How to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Claim no more, and wait for the runs that there are.
    Drain,
    /// As after SIGTERM.
    Stop,
}

/// Why a worker cannot be reached from outside.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no place for sockets.
    #[error("use {} for control sockets: {problem}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The socket cannot be made.
    #[error("listen on the control socket {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody is there.
    #[error("find a running worker{}", name.as_ref().map(|name| format!(" called {name:?}")).unwrap_or_default())]
    NotFound {
        /// The name that was asked for.
        name: Option<String>,
    },
    /// More than one is there.
    #[error("choose a worker: there are {}", names.join(", "))]
    Ambiguous {
        /// Their names.
        names: Vec<String>,
    },
    /// The worker does not answer as it should.
    #[error("talk to the worker at {}: {problem}", path.display())]
    Talk {
        /// Its socket.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// The worker is still there.
    #[error("see the end of the worker {name:?} within {seconds} s: it still has runs")]
    StillThere {
        /// Its name.
        name: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl Error {
    /// What the user can do.
    pub(crate) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Directory { .. } | Self::Listen { .. } => {
                Some("set PREFECT_WORKER_RUNTIME_DIR to a directory that only this user can write to")
            }
            Self::NotFound { .. } => Some(
                "run this as the user that runs the worker, in the same container, with the same \
                 PREFECT_WORKER_RUNTIME_DIR",
            ),
            Self::Ambiguous { .. } => Some("name one with --name"),
            Self::Talk { .. } | Self::StillThere { .. } => None,
        }
    }

    /// 64 for what the user can correct, 69 for what is not there, 75 for what may come.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Directory { .. } | Self::Ambiguous { .. } => 64,
            Self::NotFound { .. } | Self::Listen { .. } | Self::Talk { .. } => 69,
            Self::StillThere { .. } => 75,
        }
    }
}

#[cfg(test)]
mod tests;
