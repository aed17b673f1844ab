//! Replies, and the four shapes that errors come in.

use serde_json::{Value, json};

/// A reply; without a body it is empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub status: u16,
    pub body: Option<Value>,
}

/// The reply to a request; errors leave early.
pub(super) type Answer = Result<Reply, Reply>;

impl Reply {
    pub(super) fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body) }
    }

    pub(super) fn created(body: Value) -> Self {
        Self { status: 201, body: Some(body) }
    }

    pub(super) fn empty() -> Self {
        Self { status: 200, body: None }
    }

    /// Shape 1: message, error, status code.
    pub(super) fn error(status: u16, error: &str, message: &str) -> Self {
        Self { status, body: Some(json!({"message": message, "error": error, "statusCode": status})) }
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::error(400, "Bad Request", message)
    }

    pub(super) fn not_found(message: &str) -> Self {
        Self::error(404, "Not Found", message)
    }

    pub(super) fn forbidden() -> Self {
        Self::error(403, "Forbidden", "Forbidden resource")
    }

    /// Shape 2: a list of messages from the validation.
    pub(super) fn invalid(messages: &[String]) -> Self {
        Self {
            status: 400,
            body: Some(json!({"message": messages, "error": "Bad Request", "statusCode": 400})),
        }
    }

    /// Shape 3: status and message, of jobs and of new datasets.
    pub(super) fn refused(message: &str) -> Self {
        Self { status: 400, body: Some(json!({"status": 400, "message": message})) }
    }

    /// Shape 3 with details, themselves JSON in a string.
    pub(super) fn refused_with(message: &str, error: &Value) -> Self {
        Self {
            status: 400,
            body: Some(json!({"status": 400, "message": message, "error": error.to_string()})),
        }
    }

    /// Shape 4: a bare string.
    pub(super) fn internal() -> Self {
        Self { status: 500, body: Some(json!("Internal server error")) }
    }

    /// Shape 4 without `error`, for a failed login.
    pub(super) fn unauthorized() -> Self {
        Self { status: 401, body: Some(json!({"message": "Unauthorized", "statusCode": 401})) }
    }
}
