//! What can go wrong, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use prefect_api::template::TemplateError;
use prefect_client::settings;

/// A spot in a file or in the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    source: String,
    keys: String,
}

impl Place {
    /// The whole file.
    pub fn file(path: &Path) -> Self {
        Self { source: path.display().to_string(), keys: String::new() }
    }

    /// An environment variable.
    pub fn environment(name: &str) -> Self {
        Self { source: format!("the environment variable {name}"), keys: String::new() }
    }

    /// The entry `key` of this place.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let separator = if self.keys.is_empty() { "" } else { "." };
        Self { source: self.source.clone(), keys: format!("{}{separator}{key}", self.keys) }
    }

    /// The item `index` of this place, a list.
    #[must_use]
    pub fn item(&self, index: usize) -> Self {
        Self { source: self.source.clone(), keys: format!("{}[{index}]", self.keys) }
    }

    /// This place, an item of a list, by its name instead of its number.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        let list = self.keys.rsplit_once('[').map_or(self.keys.as_str(), |(list, _)| list);
        Self { source: self.source.clone(), keys: format!("{list}[{name}]") }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.keys.is_empty() { Ok(()) } else { write!(f, ": {}", self.keys) }
    }
}

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything is as the files say.
    Done = 0,
    /// The server refused, or a fault of ours.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A file, a setting or the environment is wrong; nothing was written.
    Configuration = 64,
    /// The server cannot be reached.
    Unavailable = 69,
    /// The server is overloaded or starting; the same command may succeed later.
    TryAgain = 75,
}

/// Why the bootstrap could not be carried out. Reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read.
    #[error("read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not the TOML, YAML or JSON that it should be.
    #[error("understand {}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value that cannot be used.
    #[error("use {place}: {problem}")]
    Invalid {
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that nobody knows.
    #[error("use {place}: there is no such key")]
    UnknownKey {
        /// Where it stands.
        place: Place,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// Something that is required is missing.
    #[error("use {place}: it is missing")]
    Missing {
        /// Where it should stand.
        place: Place,
    },
    /// The environment lacks variables that a file refers to.
    #[error("fill in the environment variables that are not set: {}", list(variables))]
    Environment {
        /// The variables, and where they are used.
        variables: Vec<(String, Place)>,
    },
    /// A base job template with a fault.
    #[error("use the base job template {}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: TemplateError,
    },
    /// No deployment of that name in the file.
    #[error("find the deployment {name:?}; the file has: {}", known.join(", "))]
    NoSuchDeployment {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A work pool of the same name but of another type exists.
    #[error("set up the work pool {pool}: it exists with type {found:?}, not {wanted:?}")]
    PoolOfOtherType {
        /// The pool.
        pool: String,
        /// The type in the file.
        wanted: String,
        /// The type on the server.
        found: String,
    },
    /// A deployment names a work pool that the server does not have.
    #[error("deploy {deployment}: the server has no work pool {pool:?}")]
    NoSuchPool {
        /// The deployment, `flow/name`.
        deployment: String,
        /// The pool.
        pool: String,
    },
    /// The server cannot take the last job variable away.
    #[error("deploy {deployment}: the server keeps the job variables of a deployment that has none any more")]
    JobVariablesStay {
        /// The deployment, `flow/name`.
        deployment: String,
    },
    /// The settings of the Prefect client are wrong.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The server could not be reached, or refused.
    #[error("{doing}")]
    Server {
        /// What was being done: "save the secret s3-user".
        doing: String,
        /// Why it did not work.
        source: prefect_client::Error,
    },
    /// The report could not be written.
    #[error("write the report")]
    Report(#[from] std::io::Error),
}

/// Each variable once, with the first place that uses it.
fn list(variables: &[(String, Place)]) -> String {
    let mut entries: Vec<String> = Vec::new();
    for (index, (name, place)) in variables.iter().enumerate() {
        if variables.iter().take(index).all(|(before, _)| before != name) {
            entries.push(format!("{name} (in {place})"));
        }
    }
    entries.join(", ")
}

impl Error {
    pub(crate) fn invalid(place: Place, problem: impl Into<String>) -> Self {
        Self::Invalid { place, problem: problem.into() }
    }

    /// What the reader can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest, .. } => {
                nearest.as_ref().map(|key| format!("the nearest known key is {key}"))
            }
            Self::Environment { .. } => Some("set them; an empty value counts as not set".to_owned()),
            Self::PoolOfOtherType { .. } => Some(
                "the type of a pool cannot change: delete the pool, or give this one another name".to_owned(),
            ),
            Self::NoSuchPool { .. } => {
                Some("register the work pools first: prefect-config --work-pools DIR".to_owned())
            }
            Self::JobVariablesStay { .. } => {
                Some("keep at least one job variable, or delete the deployment first".to_owned())
            }
            Self::Settings(error) => Some(error.hint().to_owned()),
            Self::Server { source, .. } => source.hint().map(str::to_owned),
            _ => None,
        }
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Report(_) => Exit::Failed,
            Self::Server { source: prefect_client::Error::Setup { .. }, .. } => Exit::Configuration,
            Self::Server { source, .. } => match source.status() {
                None if source.is_transient() => Exit::Unavailable,
                Some(401 | 403) => Exit::Configuration,
                _ if source.is_transient() => Exit::TryAgain,
                _ => Exit::Failed,
            },
            _ => Exit::Configuration,
        }
    }
}

/// Says what was being done when a call failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, prefect_client::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Server { doing: what(), source })
    }
}
