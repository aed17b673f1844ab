//! Settings that cannot be used.

use std::path::PathBuf;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No API to talk to.
    #[error("find the Prefect API: PREFECT_API_URL is not set")]
    NoApiUrl,
    /// A setting of the wrong form. Its value may be secret and is not shown.
    #[error("use the setting {name}: {problem}")]
    Invalid {
        /// The setting.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A file that cannot be read.
    #[error("read the settings file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what its name says.
    #[error("understand the settings file {}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// What the reader can do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoApiUrl => {
                "set PREFECT_API_URL, for example http://127.0.0.1:4200/api, or choose a profile that has it"
            }
            Self::Invalid { .. } => "correct the variable, or the file that sets it",
            Self::Unreadable { .. } | Self::Malformed { .. } => "correct the file, or move it away",
        }
    }
}
