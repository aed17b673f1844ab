//! Results that outlive their run, in the form of Prefect: other flows, the UI and Python read them, and a task need
//! not be done twice.
//!
//! A result is JSON in a [`ResultStorage`]; the state of its run says where. The results of tasks stand in a record
//! with what is known about them, those of flows alone, as with Python.

mod cache;
mod record;
mod storage;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

pub use cache::Cache;
pub(crate) use cache::{Identity, Key};
use record::{Metadata, Record};
pub use storage::{LocalStorage, ResultStorage, StorageFuture};

use crate::error::BoxError;

/// How values of a type become text and come back.
pub(crate) struct Codec<T> {
    pub(crate) encode: fn(&T) -> Result<String, serde_json::Error>,
    pub(crate) decode: fn(&str) -> Result<T, serde_json::Error>,
}

impl<T> Clone for Codec<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Codec<T> {}

impl<T: Serialize + DeserializeOwned> Codec<T> {
    pub(crate) fn json() -> Self {
        Self { encode: serde_json::to_string, decode: |text| serde_json::from_str(text) }
    }
}

/// A result that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// The run has kept none, or not completed.
    #[error("read the result of a run: it kept none")]
    None,
    /// It is not JSON, but a form of Python's.
    #[error(
        "read the result at '{key}': it is written as '{serializer}'; results of Python are readable if they are \
             written with result_serializer=\"json\""
    )]
    Foreign {
        /// Where it is.
        key: String,
        /// Its form.
        serializer: String,
    },
    /// It is in the storage of a block, not in this program's.
    #[error("read the result at '{key}': it is in the storage of block {block}")]
    Elsewhere {
        /// Where it is.
        key: String,
        /// The block's id.
        block: Uuid,
    },
    /// It is no longer where it was.
    #[error("read the result at '{key}': there is none")]
    Missing {
        /// Where it was.
        key: String,
    },
    /// The storage does not give it.
    #[error("read the result at '{key}'")]
    Storage {
        /// Where it is.
        key: String,
        /// Why.
        source: BoxError,
    },
    /// It is not what was asked for.
    #[error("read the result at '{key}'")]
    Malformed {
        /// Where it is.
        key: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The results of a program. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    storage: Arc<dyn ResultStorage>,
}

impl Results {
    pub(crate) fn new(storage: Arc<dyn ResultStorage>) -> Self {
        Self { storage }
    }

    /// Stores the result of a task under a key; gives what the state of the run says of it.
    pub(crate) async fn keep(
        &self,
        key: &str,
        text: String,
        lasts: Option<Duration>,
    ) -> Result<Value, BoxError> {
        let metadata = Metadata::new(self.storage.locate(key), self.block(), lasts.map(from_now));
        let reference = metadata.reference()?;
        let record = serde_json::to_vec(&Record { metadata, result: text })?;
        self.storage.write(key, record).await?;
        Ok(reference)
    }

    /// Stores the result of a flow, which is not looked for by key.
    pub(crate) async fn keep_of_flow(&self, text: String) -> Result<Value, BoxError> {
        let key = random_key();
        let reference = serde_json::to_value(Metadata::new(self.storage.locate(&key), self.block(), None))?;
        self.storage.write(&key, text.into_bytes()).await?;
        Ok(reference)
    }

    /// The result under a key, as text, and what the state of a run says of it; `None` if there is none, or it has
    /// expired.
    pub(crate) async fn find(&self, key: &str) -> Result<Option<(String, Value)>, BoxError> {
        let Some(content) = self.storage.read(key).await? else { return Ok(None) };
        let record: Record = serde_json::from_slice(&content)?;
        if record.metadata.expiration.is_some_and(|end| end <= Timestamp::now()) {
            return Ok(None);
        }
        if !record.metadata.serializer.is_json() {
            return Ok(None);
        }
        Ok(Some((record.result, record.metadata.reference()?)))
    }

    /// The result that a state refers to, as text.
    pub(crate) async fn read(&self, reference: Option<&Value>) -> Result<(String, String), ResultError> {
        let reference = reference.filter(|reference| !reference.is_null()).ok_or(ResultError::None)?;
        let metadata: Metadata = serde_json::from_value(reference.clone())
            .map_err(|source| ResultError::Malformed { key: String::new(), source })?;
        let key = metadata.storage_key.clone();
        if !metadata.serializer.is_json() {
            return Err(ResultError::Foreign { key, serializer: metadata.serializer.kind });
        }
        if let Some(block) = metadata.storage_block_id.filter(|block| Some(*block) != self.block()) {
            return Err(ResultError::Elsewhere { key, block });
        }
        let content = self.storage.read(&key).await;
        let content = content.map_err(|source| ResultError::Storage { key: key.clone(), source })?;
        let Some(content) = content else { return Err(ResultError::Missing { key }) };
        let text = match serde_json::from_slice::<Record>(&content) {
            Ok(record) => record.result,
            // The result of a flow stands alone.
            Err(_) => String::from_utf8_lossy(&content).into_owned(),
        };
        Ok((text, key))
    }

    fn block(&self) -> Option<Uuid> {
        self.storage.block_id()
    }
}

/// A key for a result that is not looked for by key.
pub(crate) fn random_key() -> String {
    Uuid::new_v4().simple().to_string()
}

fn from_now(lasts: Duration) -> Timestamp {
    let lasts = SignedDuration::try_from(lasts).unwrap_or(SignedDuration::MAX);
    Timestamp::now().saturating_add(lasts).unwrap_or(Timestamp::MAX)
}
