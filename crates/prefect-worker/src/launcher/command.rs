//! Command lines.

use serde_json::Value;

use super::LaunchError;
use super::fields::{texts, wrong};

/// Splits text as a shell would; a list is taken as it is.
pub(super) fn words(name: &str, value: Value) -> Result<Vec<String>, LaunchError> {
    match value {
        Value::String(line) => split(name, &line),
        value => texts(name, value),
    }
}

/// Splits a command line as a shell would.
pub(super) fn split(name: &str, line: &str) -> Result<Vec<String>, LaunchError> {
    shlex::split(line).ok_or_else(|| {
        wrong(name, "a command line (a quote or an escape is not closed)", &Value::String(line.to_owned()))
    })
}
