//! Storages that blocks of the Prefect server describe, as Python's `WritableFileSystem`.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use prefect_api::id::BlockDocumentId;
use prefect_api::record::BlockDocument;
use prefect_client::Client;
use tokio::sync::Mutex;

use super::{LocalStorage, ResultStorage};
use crate::block::{self, BlockName};
use crate::engine::Patience;
use crate::error::BoxError;

/// A type of blocks that say where results are kept: `prefect-flow-s3` has that of buckets.
pub trait StorageBlock: Send + Sync + fmt::Debug {
    /// The slug of the type, for example `s3-bucket`.
    fn slug(&self) -> &'static str;

    /// The storage that a block describes. The fields of the block may be secret: errors must not repeat them.
    fn open(&self, block: &BlockDocument) -> Result<Arc<dyn ResultStorage>, BoxError>;
}

/// A storage that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("read the default storage of results")]
    Default(#[source] prefect_client::Error),
    #[error("read the storage block {block}")]
    Unreadable { block: String, source: prefect_client::Error },
    #[error("read the storage block {block}: the Prefect server has none of that name")]
    Missing { block: String },
    #[error("use the storage block {block} of type '{slug}': this program knows {known}")]
    Unknown { block: String, slug: String, known: String },
    #[error("use the storage block {block}")]
    Unusable { block: String, source: BoxError },
}

/// Python's `LocalFileSystem`: a directory.
#[derive(Debug)]
struct LocalFileSystem;

impl StorageBlock for LocalFileSystem {
    fn slug(&self) -> &'static str {
        "local-file-system"
    }

    fn open(&self, block: &BlockDocument) -> Result<Arc<dyn ResultStorage>, BoxError> {
        let path = block.data.get("basepath").and_then(|path| path.as_str()).unwrap_or(".");
        let path = match (path.strip_prefix('~'), std::env::home_dir()) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(path),
        };
        Ok(Arc::new(LocalStorage::of_block(std::path::absolute(path)?, block.id.0)))
    }
}

/// The storages of blocks, each opened once.
#[derive(Debug)]
pub(super) struct Blocks {
    client: Client,
    patience: Arc<Patience>,
    kinds: Vec<Arc<dyn StorageBlock>>,
    opened: Mutex<HashMap<BlockDocumentId, Arc<dyn ResultStorage>>>,
}

impl Blocks {
    pub(super) fn new(client: Client, patience: Arc<Patience>, kinds: &[Arc<dyn StorageBlock>]) -> Self {
        let mut all: Vec<Arc<dyn StorageBlock>> = kinds.to_vec();
        all.push(Arc::new(LocalFileSystem));
        Self { client, patience, kinds: all, opened: Mutex::default() }
    }

    /// The storage of the block of this name.
    pub(super) async fn named(&self, name: &BlockName) -> Result<Arc<dyn ResultStorage>, OpenError> {
        let found = name.read(&self.client, &self.patience).await;
        self.found(name.to_string(), found).await
    }

    /// The storage of the block of this id.
    pub(super) async fn of(&self, id: BlockDocumentId) -> Result<Arc<dyn ResultStorage>, OpenError> {
        if let Some(open) = self.opened.lock().await.get(&id) {
            return Ok(Arc::clone(open));
        }
        let found = block::read_by_id(&self.client, &self.patience, id).await;
        self.found(id.to_string(), found).await
    }

    /// The storage that the server names for all programs.
    pub(super) async fn default(&self) -> Result<Option<Arc<dyn ResultStorage>>, OpenError> {
        let ask = || self.client.read_default_result_storage();
        let id = self.patience.insist("read the default storage of results", ask).await;
        match id.map_err(OpenError::Default)? {
            Some(id) => self.of(id).await.map(Some),
            None => Ok(None),
        }
    }

    async fn found(
        &self,
        block: String,
        found: Result<Option<BlockDocument>, prefect_client::Error>,
    ) -> Result<Arc<dyn ResultStorage>, OpenError> {
        let document = match found {
            Ok(Some(document)) => document,
            Ok(None) => return Err(OpenError::Missing { block }),
            Err(source) => return Err(OpenError::Unreadable { block, source }),
        };
        let slug = document.block_type.as_ref().map_or("", |kind| kind.slug.as_str());
        let Some(kind) = self.kinds.iter().find(|kind| kind.slug() == slug) else {
            let known: Vec<String> = self.kinds.iter().map(|kind| format!("'{}'", kind.slug())).collect();
            return Err(OpenError::Unknown { block, slug: slug.to_owned(), known: known.join(", ") });
        };
        let open = kind.open(&document).map_err(|source| OpenError::Unusable { block, source })?;
        Ok(Arc::clone(self.opened.lock().await.entry(document.id).or_insert(open)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn document(data: Value) -> BlockDocument {
        let id = uuid::Uuid::nil();
        let document = json!({"id": id, "data": data, "block_schema_id": id, "block_type_id": id});
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_local_file_system_is_a_directory_and_keys_stay_keys() {
        let storage = LocalFileSystem.open(&document(json!({"basepath": "/results"}))).unwrap();
        assert_eq!(storage.locate("a"), "a");
        assert_eq!(storage.block_id(), Some(uuid::Uuid::nil()));
        let home = LocalFileSystem.open(&document(json!({"basepath": "~/results"}))).unwrap();
        assert!(!format!("{home:?}").contains('~'), "{home:?}");
        LocalFileSystem.open(&document(json!({"basepath": null}))).unwrap();
    }
}
