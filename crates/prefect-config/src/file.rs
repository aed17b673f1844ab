//! Reading files: TOML, YAML and JSON alike become a JSON value.

use std::path::Path;

use serde_json::Value;

use crate::Error;

pub(crate) fn text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })
}

pub(crate) fn toml(path: &Path) -> Result<Value, Error> {
    toml::from_str(&text(path)?).map_err(|error| malformed(path, error))
}

/// YAML with anchors and merge keys (`<<`) replaced by what they stand for.
pub(crate) fn yaml(path: &Path) -> Result<Value, Error> {
    serde_saphyr::from_str(&text(path)?).map_err(|error| malformed(path, error))
}

pub(crate) fn json(path: &Path) -> Result<Value, Error> {
    serde_json::from_str(&text(path)?).map_err(|error| malformed(path, error))
}

fn malformed(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Malformed { path: path.to_owned(), source: Box::new(error) }
}
