//! The archiver's variables: which there are, what they may hold, what they are unless somebody says otherwise.
//!
//! Variables have lower-case names and hold text, whatever they mean: that is what flows expect to read.

use std::path::Path;

use crate::{Environment, Error, Place, keys};

/// A variable as it should be on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// The name: lower-case letters, digits, underscores.
    pub name: String,
    /// The value.
    pub value: String,
}

/// What a value must look like.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// A number above 0, with a fraction or without.
    Amount,
    Whole {
        least: u64,
        most: u64,
    },
    Percent,
}

struct Known {
    key: &'static str,
    form: Form,
    default: Option<&'static str>,
}

const fn text(key: &'static str, default: Option<&'static str>) -> Known {
    Known { key, form: Form::Text, default }
}

const fn whole(key: &'static str, least: u64, most: u64, default: Option<&'static str>) -> Known {
    Known { key, form: Form::Whole { least, most }, default }
}

/// Seconds. Nothing waits for longer.
const DAY: u64 = 86_400;

const KNOWN: [Known; 19] = [
    text("ARCHIVER_SCRATCH_FOLDER", None),
    Known { key: "ARCHIVER_TARGET_SIZE_GB", form: Form::Amount, default: Some("20") },
    whole("ARCHIVER_NUM_WORKERS", 1, 1024, Some("4")),
    whole("ARCHIVER_LTS_FILE_TIMEOUT_S", 0, DAY, None),
    whole("ARCHIVER_LTS_WAIT_BEFORE_VERIFY_S", 0, DAY, None),
    text("LTS_STORAGE_ROOT", None),
    Known { key: "LTS_FREE_SPACE_PERCENTAGE", form: Form::Percent, default: None },
    text("S3_REGION", None),
    text("S3_ARCHIVAL_BUCKET", None),
    text("S3_LANDINGZONE_BUCKET", None),
    text("S3_RETRIEVAL_BUCKET", None),
    text("S3_ENDPOINT", None),
    text("S3_EXTERNAL_ENDPOINT", None),
    // A presigned URL cannot live longer than seven days.
    whole("S3_URL_EXPIRATION_DAYS", 1, 7, Some("7")),
    text("S3_ARCHIVAL_STORAGE_CLASS", Some("GLACIER")),
    text("SCICAT_ENDPOINT", None),
    text("SCICAT_API_PREFIX", None),
    text("SCICAT_DATASETS_API_PREFIX", None),
    text("SCICAT_JOBS_API_PREFIX", None),
];

/// The variables of a file, with the environment laid over it and defaults below it.
///
/// # Errors
/// An unreadable or malformed file, an unknown or doubled key, a value of the wrong form.
pub(crate) fn load(path: &Path, environment: &Environment) -> Result<Vec<Variable>, Error> {
    let names: Vec<_> = KNOWN.iter().map(|known| known.key).collect();
    let mut found = keys::load(path, environment, &names, present_spelling)?;
    let mut variables = Vec::new();
    for known in &KNOWN {
        let value = match found.remove(known.key) {
            Some((place, value)) => {
                check(known.form, &value).map_err(|problem| invalid(place, &problem, &value))?;
                Some(value)
            }
            None => known.default.map(str::to_owned),
        };
        variables.extend(value.map(|value| Variable { name: known.key.to_lowercase(), value }));
    }
    Ok(variables)
}

/// Files from before the archive was in S3 say `MINIO_REGION` for what is `S3_REGION` today.
fn present_spelling(key: &str) -> String {
    key.strip_prefix("MINIO_").map_or_else(|| key.to_owned(), |rest| format!("S3_{rest}"))
}

fn invalid(place: Place, problem: &str, value: &str) -> Error {
    Error::invalid(place, format!("it must be {problem}, not {value:?}"))
}

fn check(form: Form, value: &str) -> Result<(), String> {
    match form {
        Form::Text => Ok(()),
        Form::Amount => match value.parse::<f64>() {
            Ok(number) if number > 0.0 && number.is_finite() => Ok(()),
            _ => Err("a number above 0".to_owned()),
        },
        Form::Whole { least, most } => match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(()),
            _ => Err(format!("a whole number from {least} to {most}")),
        },
        Form::Percent => match value.parse::<f64>() {
            Ok(number) if (0.0..=100.0).contains(&number) => Ok(()),
            _ => Err("a number from 0 to 100".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests;
