//! How a process ends.

use std::process::ExitCode;

/// What the exit code of a flow binary says. A flow run whose end was reported ends with [`Exit::Ok`] however
/// it went, so that a worker does not report a second end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `flow-run execute`: the server knows how the run ended.
    Ok,
    /// The run crashed, or a run started by hand failed.
    Failure,
    /// The command line is wrong.
    Usage,
    /// The settings, or the deployment's name of the flow, are wrong.
    Config,
    /// The server cannot be reached.
    Unavailable,
    /// It may work later.
    TryAgain,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Config => 64,
            Self::Unavailable => 69,
            Self::TryAgain => 75,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
