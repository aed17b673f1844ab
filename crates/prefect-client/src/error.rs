//! What can go wrong between us and the server.

use std::time::Duration;

/// A call that did not succeed, after the retries of the protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client could not be made from the settings.
    #[error("set up the client of the Prefect API: {problem}")]
    Setup {
        /// What is wrong.
        problem: String,
    },
    /// The server was never reached.
    #[error("reach the Prefect API at {url}")]
    Unreachable {
        /// The API's root.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The connection failed on the way.
    #[error("{method} {path} on the Prefect API, {attempts} attempt(s)")]
    Transport {
        /// The HTTP method.
        method: reqwest::Method,
        /// The path below the API's root.
        path: String,
        /// How often it was tried.
        attempts: u32,
        /// Why.
        source: reqwest::Error,
    },
    /// The server refused or failed.
    #[error("{method} {path} on the Prefect API: {status} {message}")]
    Status {
        /// The HTTP method.
        method: reqwest::Method,
        /// The path below the API's root.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What the server says.
        message: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The server's answer is not of the expected form.
    #[error("understand the answer to {method} {path} of the Prefect API")]
    Decode {
        /// The HTTP method.
        method: reqwest::Method,
        /// The path below the API's root.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Setup { .. } | Self::Decode { .. } => false,
            Self::Unreachable { .. } | Self::Transport { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 423 | 429 | 500..=599),
        }
    }

    /// Whether the call may have taken effect all the same: it was on its way, and what became of it was lost. Of a call
    /// that the client has repeated, this is told of the last attempt only.
    pub fn may_have_taken_effect(&self) -> bool {
        match self {
            Self::Setup { .. } | Self::Unreachable { .. } => false,
            Self::Transport { source, .. } => !source.is_connect(),
            Self::Status { status, .. } => lost_behind_a_gateway(*status),
            Self::Decode { .. } => true,
        }
    }

    /// The HTTP status, if there was an answer.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the record does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self.status(), Some(404))
    }

    /// What the reader can do.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some("is the Prefect server running, and is PREFECT_API_URL right?"),
            Self::Status { status: 300..=399, .. } => {
                Some("the server redirects elsewhere: set PREFECT_API_URL to the address where the API is")
            }
            Self::Status { status: 401, .. } => {
                Some("the server wants other credentials: see PREFECT_API_AUTH_STRING and PREFECT_API_KEY")
            }
            Self::Status { status: 403, .. } => Some("the server, or a proxy before it, does not allow this"),
            _ => None,
        }
    }
}

/// Whether an answer comes from a gateway that has passed the request on and got no answer itself.
pub(crate) const fn lost_behind_a_gateway(status: u16) -> bool {
    matches!(status, 502 | 504)
}
