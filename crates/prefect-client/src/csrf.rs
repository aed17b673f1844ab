//! The CSRF token that a write needs when the server's protection is on (contract §9).

use jiff::{SignedDuration, Timestamp};
use reqwest::header::HeaderValue;
use serde::Deserialize;
use uuid::Uuid;

/// What is known about the token of one client.
#[derive(Debug)]
pub(crate) struct Csrf {
    pub(crate) client: Uuid,
    pub(crate) state: State,
}

pub(crate) enum State {
    /// We are told not to take part.
    Disabled,
    /// Not asked yet, or the last token was refused.
    Unknown,
    /// The server has no protection.
    Off,
    Token {
        value: HeaderValue,
        expires: Timestamp,
    },
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disabled => "Disabled",
            Self::Unknown => "Unknown",
            Self::Off => "Off",
            Self::Token { .. } => "Token",
        })
    }
}

#[derive(Deserialize)]
pub(crate) struct Reply {
    token: String,
    expiration: Timestamp,
}

impl Csrf {
    pub(crate) fn new(enabled: bool) -> Self {
        Self { client: Uuid::new_v4(), state: if enabled { State::Unknown } else { State::Disabled } }
    }

    /// Whether a token must be fetched before the next write.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        match &self.state {
            State::Disabled | State::Off => false,
            State::Token { expires, .. } => now + SignedDuration::from_secs(5) >= *expires,
            State::Unknown => true,
        }
    }

    /// The token to send, if one is known.
    pub(crate) fn token(&self) -> Option<HeaderValue> {
        match &self.state {
            State::Token { value, .. } => Some(value.clone()),
            State::Disabled | State::Off | State::Unknown => None,
        }
    }

    /// Learns that the server refused a write for its token or the lack of one; whether another try is worth it.
    pub(crate) fn forget(&mut self) -> bool {
        let takes_part = !matches!(self.state, State::Disabled);
        if takes_part {
            self.state = State::Unknown;
        }
        takes_part
    }

    /// Takes the server's answer to the request for a token: its status, and the body of a success. `false` if it
    /// refused or failed: then the write would not fare better.
    pub(crate) fn learn(&mut self, status: u16, body: &[u8]) -> bool {
        self.state = match (status, serde_json::from_slice::<Reply>(body)) {
            (200, Ok(reply)) => match HeaderValue::from_str(&reply.token) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    State::Token { value, expires: reply.expiration }
                }
                Err(_) => State::Unknown,
            },
            // 422: protection is disabled; 404: a server without it.
            (422 | 404, _) => State::Off,
            _ => State::Unknown,
        };
        matches!(status, 200..=299) || matches!(self.state, State::Off)
    }
}
