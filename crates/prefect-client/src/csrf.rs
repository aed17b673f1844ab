//! The CSRF token that a write needs when the server's protection is on (contract §9). Few servers have it on, hence they
//! are not asked before they have refused a write for the lack of a token.

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
    /// No write was ever refused for the lack of a token.
    Unasked,
    /// A write was refused for its token or the lack of one: the next one needs a new token.
    Wanted,
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
            Self::Unasked => "Unasked",
            Self::Wanted => "Wanted",
            Self::Off => "Off",
            Self::Token { .. } => "Token",
        })
    }
}

/// Whether a write that was refused for its token, or the lack of one, is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    No,
    /// It was sent without what we know now.
    AtOnce,
    /// As after any other failure: the token that we had should have been good.
    Later,
}

#[derive(Deserialize)]
pub(crate) struct Reply {
    token: String,
    expiration: Timestamp,
}

impl Csrf {
    pub(crate) fn new(enabled: bool) -> Self {
        Self { client: Uuid::new_v4(), state: if enabled { State::Unasked } else { State::Disabled } }
    }

    /// Whether a token must be fetched before the next write.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        match &self.state {
            State::Disabled | State::Unasked | State::Off => false,
            State::Token { expires, .. } => now + SignedDuration::from_secs(5) >= *expires,
            State::Wanted => true,
        }
    }

    /// The token to send, if one is known.
    pub(crate) fn token(&self) -> Option<HeaderValue> {
        match &self.state {
            State::Token { value, .. } => Some(value.clone()),
            State::Disabled | State::Unasked | State::Wanted | State::Off => None,
        }
    }

    /// Learns that the server refused a write that was sent with this token, or without one.
    pub(crate) fn refused(&mut self, sent: Option<&HeaderValue>) -> Again {
        let again = match &self.state {
            State::Disabled => return Again::No,
            // Another call has fetched a token meanwhile, which must not be lost.
            State::Token { value, .. } if Some(value) != sent => return Again::AtOnce,
            State::Unasked | State::Wanted => Again::AtOnce,
            State::Off | State::Token { .. } => Again::Later,
        };
        self.state = State::Wanted;
        again
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
                Err(_) => State::Wanted,
            },
            // 422: protection is disabled; 404: a server without it.
            (422 | 404, _) => State::Off,
            _ => State::Wanted,
        };
        matches!(status, 200..=299) || matches!(self.state, State::Off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_wanted_once_a_write_was_refused_for_it() {
        let mut csrf = Csrf::new(true);
        assert!(!csrf.is_due(Timestamp::now()));
        // Two writes at once.
        assert_eq!([csrf.refused(None), csrf.refused(None)], [Again::AtOnce; 2]);
        assert!(csrf.is_due(Timestamp::now()));
        assert!(csrf.learn(200, br#"{"token": "new", "expiration": "2100-01-01T00:00:00Z"}"#));
        // One more, which was on its way before the token came.
        assert_eq!(csrf.refused(None), Again::AtOnce);
        let token = csrf.token();
        assert_eq!(token.as_ref().unwrap(), "new");
        assert_eq!(csrf.refused(token.as_ref()), Again::Later);
        assert!(csrf.is_due(Timestamp::now()));
    }

    #[test]
    fn a_server_that_knows_no_tokens_and_wants_one_is_not_asked_without_end() {
        let mut csrf = Csrf::new(true);
        assert_eq!(csrf.refused(None), Again::AtOnce);
        assert!(csrf.learn(422, b""));
        assert_eq!(csrf.refused(None), Again::Later);
        assert_eq!(Csrf::new(false).refused(None), Again::No);
    }
}
