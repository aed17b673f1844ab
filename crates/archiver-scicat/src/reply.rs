//! Reading SciCat's answers: one sentence from any of its four error shapes.

use archiver::CatalogueError;
use serde_json::Value;

/// Longest text taken from an answer that is not understood.
const MAX_TEXT: usize = 300;

/// The words of an error body. The shapes: an object whose `message` is a text or a list of texts, either with
/// an `error` that may say more; a bare text; anything.
pub(crate) fn error_message(body: &[u8]) -> String {
    let message = match serde_json::from_slice(body) {
        Ok(Value::String(text)) => text,
        Ok(Value::Object(object)) => {
            let mut message = match object.get("message") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(texts)) => texts
                    .iter()
                    .map(|text| text.as_str().map_or_else(|| text.to_string(), str::to_owned))
                    .collect::<Vec<_>>()
                    .join("; "),
                _ => Value::Object(object.clone()).to_string(),
            };
            // Jobs put the names of missing files there, as JSON in a text; elsewhere it repeats the status.
            if let Some(detail) =
                object.get("error").and_then(Value::as_str).filter(|text| text.starts_with('['))
            {
                message.push(' ');
                message.push_str(detail);
            }
            message
        }
        _ => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let message: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
    if message.is_empty() { "no message".to_owned() } else { message }
}

/// The error that an answer with `status` means.
pub(crate) fn error_of(action: String, status: u16, body: &[u8]) -> CatalogueError {
    let message = error_message(body);
    match status {
        // An unknown route is a wrong address, not an unknown thing.
        404 if !message.starts_with("Cannot ") => CatalogueError::NotFound { action, message },
        400 if message == "Invalid job id." => CatalogueError::NotFound { action, message },
        401 | 403 => CatalogueError::Denied { action, message },
        300..=399 => {
            let message = "it redirects elsewhere; use the address it redirects to".to_owned();
            CatalogueError::Refused { action, status, message }
        }
        408 | 429 | 502..=504 => {
            CatalogueError::Unavailable { action, source: format!("status {status}: {message}").into() }
        }
        _ => CatalogueError::Refused { action, status, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_error_becomes_one_sentence() {
        for (body, message) in [
            (
                r#"{"message":"Unauthorized access","error":"Forbidden","statusCode":403}"#,
                "Unauthorized access",
            ),
            (
                r#"{"message":["archiveId must be a string","size must be an integer"],"error":"Bad Request","statusCode":400}"#,
                "archiveId must be a string; size must be an integer",
            ),
            (
                r#"{"status":400,"message":"At least one requested file could not be found.","error":"[{\"pid\":\"x\"}]"}"#,
                r#"At least one requested file could not be found. [{"pid":"x"}]"#,
            ),
            (r#""Internal server error""#, "Internal server error"),
            ("<html>\nBad gateway", "<html> Bad gateway"),
            ("", "no message"),
            (r#"{"odd":1}"#, r#"{"odd":1}"#),
        ] {
            assert_eq!(error_message(body.as_bytes()), message);
        }
        assert_eq!(error_message("x".repeat(10_000).as_bytes()).len(), MAX_TEXT);
    }

    #[test]
    fn statuses_mean_what_scicat_means_by_them() {
        let error = |status, body: &str| error_of("read job x".to_owned(), status, body.as_bytes());
        assert!(matches!(
            error(400, r#"{"status":400,"message":"Invalid job id."}"#),
            CatalogueError::NotFound { .. }
        ));
        assert!(matches!(
            error(404, r#"{"message":"dataset: x not found"}"#),
            CatalogueError::NotFound { .. }
        ));
        assert!(matches!(
            error(404, r#"{"message":"Cannot GET /x"}"#),
            CatalogueError::Refused { status: 404, .. }
        ));
        assert!(matches!(error(403, "{}"), CatalogueError::Denied { .. }));
        assert!(matches!(
            error(500, "\"Internal server error\""),
            CatalogueError::Refused { status: 500, .. }
        ));
        for status in [408, 429, 502, 503, 504] {
            assert!(error(status, "").is_transient());
        }
    }
}
