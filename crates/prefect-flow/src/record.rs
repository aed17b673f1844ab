//! Variables, read once per process, and secrets, never shown.

use std::collections::HashMap;
use std::sync::Arc;

use prefect_client::Client;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, OnceCell};

use crate::engine::Patience;
use crate::error::RecordError;

/// The variables that have been read. A variable is the same for the whole process, so that a run cannot see
/// two values of it.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    read: Mutex<HashMap<String, Arc<OnceCell<Option<Value>>>>>,
}

impl Variables {
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        client: &Client,
        patience: &Patience,
        name: &str,
    ) -> Result<Option<T>, RecordError> {
        let cell = Arc::clone(self.read.lock().await.entry(name.to_owned()).or_default());
        let value = cell
            .get_or_try_init(|| async {
                let found = patience.insist("read a variable", || client.read_variable(name)).await?;
                Ok(found.map(|it| it.value))
            })
            .await
            .map_err(|source| RecordError::Unreadable { kind: "variable", name: name.to_owned(), source })?;
        let Some(value) = value else { return Ok(None) };
        let read = serde_path_to_error::deserialize(value.clone());
        read.map(Some).map_err(|error| RecordError::Malformed {
            kind: "variable",
            name: name.to_owned(),
            path: error.path().to_string(),
            problem: error.inner().to_string(),
        })
    }
}

/// The value of a Secret block.
pub(crate) async fn secret(
    client: &Client,
    patience: &Patience,
    name: &str,
) -> Result<SecretString, RecordError> {
    let kind = "secret block";
    let document = patience
        .insist("read a secret block", || client.read_block("secret", name, true))
        .await
        .map_err(|source| RecordError::Unreadable { kind, name: name.to_owned(), source })?
        .ok_or_else(|| RecordError::Missing { kind, name: name.to_owned() })?;
    let malformed = |problem: &str| RecordError::Malformed {
        kind,
        name: name.to_owned(),
        path: "value".to_owned(),
        problem: problem.to_owned(),
    };
    match document.data.get("value") {
        // Whoever sees asterisks would use them as a password (contract §3.7).
        Some(Value::String(value)) if value == "********" => {
            Err(malformed("the server hides the secret from this program"))
        }
        Some(Value::String(value)) => Ok(SecretString::from(value.clone())),
        // Prefect's Secret may hold any JSON; as text it is what a Python flow would print.
        Some(value) if !value.is_null() => Ok(SecretString::from(value.to_string())),
        _ => Err(malformed("the block has no value")),
    }
}
