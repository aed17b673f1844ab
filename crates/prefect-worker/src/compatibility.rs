//! Which versions of the Prefect server this worker is made for.

use prefect_client::{Client, PREFECT_VERSION, Settings, settings};

use crate::error::{Error, chain};
use crate::status::StatusBoard;

/// The setting that switches the comparison off.
pub(crate) const CHECK: &str = "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED";
/// What can be done about a version that is not known.
pub(crate) const REMEDY: &str = "run a Prefect server of 3.4 or later, and a worker that knows it; or set \
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED=false";

/// The minor versions of Prefect 3 that the worker is tested with.
const TESTED: std::ops::RangeInclusive<u32> = 4..=9;

/// What is wrong with a server's version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// Another API.
    #[error("the server is Prefect {version}: this worker speaks the API of Prefect 3 ({PREFECT_VERSION})")]
    OtherMajor { version: String },
    #[error(
        "the server is Prefect {version}, older than 3.{}, the oldest that this worker is tested with",
        TESTED.start()
    )]
    Older { version: String },
    #[error(
        "the server is Prefect {version}, newer than 3.{}, the newest that this worker is tested with",
        TESTED.end()
    )]
    Newer { version: String },
    #[error("the server calls its version {version:?}, which is none")]
    Unreadable { version: String },
}

impl Problem {
    /// Whether nothing can be expected to work.
    pub(crate) const fn is_fatal(&self) -> bool {
        matches!(self, Self::OtherMajor { .. })
    }
}

/// Whether versions are to be compared.
///
/// # Errors
/// The setting is neither true nor false.
pub(crate) fn check_enabled(settings: &Settings) -> Result<bool, settings::Error> {
    settings.flag(CHECK, true)
}

/// Compares a server's version with those that we know.
///
/// # Errors
/// It is none of them.
pub(crate) fn of(version: &str) -> Result<(), Problem> {
    let mut numbers = version.split(['.', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = version.to_owned();
    match (numbers.next(), numbers.next()) {
        (Some(3), Some(minor)) if minor < *TESTED.start() => Err(Problem::Older { version }),
        (Some(3), Some(minor)) if minor > *TESTED.end() => Err(Problem::Newer { version }),
        (Some(3), Some(_)) => Ok(()),
        (Some(_), Some(_)) => Err(Problem::OtherMajor { version }),
        _ => Err(Problem::Unreadable { version }),
    }
}

/// Asks the server for its version, shows it on the board and, if it is news, compares it where that is wanted.
///
/// # Errors
/// The server is away, or speaks another API. Whatever else a server answers is not about versions.
pub(crate) async fn learn(client: &Client, board: &StatusBoard, compare: bool) -> Result<(), Error> {
    let version = match client.server_version().await {
        Ok(version) => version,
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(error) => {
            tracing::debug!(error = chain(&error), "the server did not tell its version");
            return Ok(());
        }
    };
    if !board.set_server_version(&version) || !compare {
        return Ok(());
    }
    match of(&version) {
        Ok(()) => Ok(()),
        Err(problem) if problem.is_fatal() => Err(Error::ServerVersion { problem: problem.to_string() }),
        Err(problem) => {
            tracing::warn!("{problem}; {REMEDY}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::prefect::Release;

    use super::*;

    #[test]
    fn the_versions_that_we_are_tested_with_are_known_and_their_neighbours_are_told() {
        for release in [Release::Oldest, Release::Reference, Release::Newest] {
            assert_eq!(of(release.number()), Ok(()));
        }
        for known in ["3.7.2.dev1", "3.7.0rc1", "3.8.0+12.gabcdef"] {
            assert_eq!(of(known), Ok(()), "{known}");
        }
        for (version, part, fatal) in [
            ("3.3.9", "older than 3.4", false),
            ("3.10.0", "newer than 3.9", false),
            ("2.20.0", "Prefect 3", true),
            ("4.0.0", "Prefect 3", true),
            ("", "none", false),
            ("latest", "none", false),
        ] {
            let problem = of(version).unwrap_err();
            assert!(problem.to_string().contains(part) && problem.is_fatal() == fatal, "{problem}");
        }
    }
}
