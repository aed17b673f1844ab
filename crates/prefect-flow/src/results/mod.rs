//! Results that outlive their run, in the form of Prefect: other flows, the UI and Python read them, and a task need
//! not be done twice.
//!
//! A result is JSON in a [`ResultStorage`]; the state of its run says where. The results of tasks stand in a record
//! with what is known about them, those of flows alone, as with Python.

mod block;
mod cache;
mod record;
mod storage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::id::BlockDocumentId;
use prefect_client::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;
use uuid::Uuid;

pub use block::StorageBlock;
use block::{Blocks, OpenError};
pub use cache::Cache;
pub(crate) use cache::{Identity, Key};
use record::{Metadata, Record};
pub use storage::{LocalStorage, ResultStorage, StorageFuture};

use crate::block::BlockName;
use crate::engine::Patience;
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

/// Where a program keeps its results.
#[derive(Debug, Clone)]
pub(crate) enum Home {
    /// What the program brings.
    Given(Arc<dyn ResultStorage>),
    /// What the block of this name describes.
    Block(BlockName),
    /// What the server names for all programs; this directory if nothing.
    Default(PathBuf),
}

/// The results of a program.
#[derive(Debug)]
pub(crate) struct Results {
    home: Home,
    blocks: Blocks,
    /// Found when the first result is kept or looked for: most runs need none.
    storage: OnceCell<Arc<dyn ResultStorage>>,
}

impl Results {
    pub(crate) fn new(
        home: Home,
        client: Client,
        patience: Arc<Patience>,
        kinds: &[Arc<dyn StorageBlock>],
    ) -> Self {
        Self { home, blocks: Blocks::new(client, patience, kinds), storage: OnceCell::new() }
    }

    async fn storage(&self) -> Result<&Arc<dyn ResultStorage>, OpenError> {
        // On the heap: it is looked for once, and all tasks have room for this.
        self.storage.get_or_try_init(|| Box::pin(self.open())).await
    }

    async fn open(&self) -> Result<Arc<dyn ResultStorage>, OpenError> {
        match &self.home {
            Home::Given(storage) => Ok(Arc::clone(storage)),
            Home::Block(name) => self.blocks.named(name).await,
            Home::Default(directory) => match self.blocks.default().await? {
                Some(storage) => Ok(storage),
                None => Ok(Arc::new(LocalStorage::new(directory))),
            },
        }
    }

    /// Stores the result of a task under a key; gives what the state of the run says of it.
    pub(crate) async fn keep(
        &self,
        key: &str,
        text: String,
        lasts: Option<Duration>,
    ) -> Result<Value, BoxError> {
        let storage = self.storage().await?;
        let metadata = Metadata::new(storage.locate(key), storage.block_id(), lasts.map(from_now));
        let reference = metadata.reference()?;
        let record = serde_json::to_vec(&Record { metadata, result: text })?;
        storage.write(key, record).await?;
        Ok(reference)
    }

    /// Stores the result of a flow, which is not looked for by key.
    pub(crate) async fn keep_of_flow(&self, text: String) -> Result<Value, BoxError> {
        let (storage, key) = (self.storage().await?, random_key());
        let reference = serde_json::to_value(Metadata::new(storage.locate(&key), storage.block_id(), None))?;
        storage.write(&key, text.into_bytes()).await?;
        Ok(reference)
    }

    /// The result under a key, as text, and what the state of a run says of it; `None` if there is none, or it has
    /// expired.
    pub(crate) async fn find(&self, key: &str) -> Result<Option<(String, Value)>, BoxError> {
        let Some(content) = self.storage().await?.read(key).await? else { return Ok(None) };
        let record: Record = serde_json::from_slice(&content)?;
        if record.metadata.expiration.is_some_and(|end| end <= Timestamp::now()) {
            return Ok(None);
        }
        if !record.metadata.serializer.is_json() {
            return Ok(None);
        }
        Ok(Some((record.result, record.metadata.reference()?)))
    }

    /// The result that a state refers to, as text, in whichever storage it is.
    pub(crate) async fn read(&self, reference: Option<&Value>) -> Result<(String, String), ResultError> {
        let reference = reference.filter(|reference| !reference.is_null()).ok_or(ResultError::None)?;
        let metadata: Metadata = serde_json::from_value(reference.clone())
            .map_err(|source| ResultError::Malformed { key: String::new(), source })?;
        let key = metadata.storage_key.clone();
        if !metadata.serializer.is_json() {
            return Err(ResultError::Foreign { key, serializer: metadata.serializer.kind });
        }
        let content = self.content(&key, metadata.storage_block_id).await;
        let content = content.map_err(|source| ResultError::Storage { key: key.clone(), source })?;
        let Some(content) = content else { return Err(ResultError::Missing { key }) };
        let text = match serde_json::from_slice::<Record>(&content) {
            Ok(record) => record.result,
            // The result of a flow stands alone.
            Err(_) => String::from_utf8_lossy(&content).into_owned(),
        };
        Ok((text, key))
    }

    /// What is under a key in the storage of a block, or in the program's own.
    async fn content(&self, key: &str, block: Option<Uuid>) -> Result<Option<Vec<u8>>, BoxError> {
        let own = self.storage().await?;
        match block {
            Some(block) if Some(block) != own.block_id() => {
                self.blocks.of(BlockDocumentId(block)).await?.read(key).await
            }
            _ => own.read(key).await,
        }
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
