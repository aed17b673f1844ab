//! Making a dataset's datablocks readable and handing out links to them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::restore::{self, RestoreError};
use crate::{
    BucketName, Catalogue, CatalogueError, DatasetId, MemberPath, ObjectAddress, ObjectKey, ObjectStore,
    Progress, RegisteredDatablock, RestoreSettings, RestoreState, StoreError, artifact_key,
};

/// Retrieves datasets from one archive.
#[derive(Clone, Debug)]
pub struct Retriever {
    store: Arc<dyn ObjectStore>,
    catalogue: Arc<dyn Catalogue>,
    archive: BucketName,
    restore: RestoreSettings,
    link_validity: Duration,
}

/// A datablock that can be downloaded now: its tar is there, online and of the registered size.
#[derive(Clone, Debug)]
pub struct ReadableDatablock {
    dataset: DatasetId,
    datablock: RegisteredDatablock,
}

impl ReadableDatablock {
    /// The datablock.
    pub fn datablock(&self) -> &RegisteredDatablock {
        &self.datablock
    }
}

/// A link to a datablock, as it stands in a job's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetrievedDatablock {
    /// The dataset.
    pub dataset_id: DatasetId,
    /// File name of the tar.
    pub name: String,
    /// Sum of the sizes of the files, in bytes.
    pub size: u64,
    /// Key of the tar in the archive bucket.
    pub archive_id: ObjectKey,
    /// Where anybody can download it for a while.
    pub url: PresignedUrl,
    /// Size of the tar, in bytes; not part of a job's result.
    #[serde(skip)]
    pub packed_size: u64,
}

impl RetrievedDatablock {
    /// Key of the artifact that shows the link.
    pub fn artifact_key(&self) -> String {
        artifact_key(&self.name)
    }
}

/// A URL that grants access to whoever has it: meant for the user, not for logs.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PresignedUrl(String);

impl PresignedUrl {
    /// A signed URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL with its signature.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PresignedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresignedUrl({}?…)", self.0.split('?').next().unwrap_or_default())
    }
}

/// Why a dataset could not be retrieved.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// It was never archived, or the account may not see it.
    #[error("retrieve {dataset}: the catalogue has no datablocks of it")]
    NoDatablocks {
        /// The dataset.
        dataset: DatasetId,
    },
    /// A tar is not the one that was registered.
    #[error("retrieve {address}: it has {found} bytes, {registered} are registered")]
    Size {
        /// The tar.
        address: ObjectAddress,
        /// Bytes as registered.
        registered: u64,
        /// Bytes as found.
        found: u64,
    },
    /// The name of a datablock is not that of a file.
    #[error("retrieve datablock {archive_id:?}: the last part of its archive id is not a file name")]
    Name {
        /// As registered.
        archive_id: String,
    },
    /// A datablock does not lie where this dataset's datablocks lie.
    #[error(
        "retrieve {dataset}: its datablock {archive_id:?} does not lie in the dataset's folder of the archive"
    )]
    Foreign {
        /// The dataset.
        dataset: DatasetId,
        /// As registered.
        archive_id: String,
    },
    /// A tar could not be made readable.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl RetrieveError {
    /// Whether it may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Restore(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            Self::Catalogue(error) => error.is_transient(),
            _ => false,
        }
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoDatablocks { .. } => "archive the dataset first, or let the account read its datablocks",
            Self::Size { .. }
            | Self::Name { .. }
            | Self::Foreign { .. }
            | Self::Restore(RestoreError::Missing { .. }) => {
                "the archive and the catalogue disagree: compare the dataset's datablocks with the archive bucket"
            }
            Self::Restore(RestoreError::TimedOut { .. }) => {
                "start the retrieval again when the store has restored it"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the run was cancelled rather than failed.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Restore(RestoreError::Cancelled))
    }
}

impl Retriever {
    /// A retriever over these ports; links stay valid for `link_validity`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        catalogue: Arc<dyn Catalogue>,
        archive: BucketName,
        restore: RestoreSettings,
        link_validity: Duration,
    ) -> Self {
        Self { store, catalogue, archive, restore, link_validity }
    }

    /// The datablocks of a dataset, in the order of their numbers; an error if there are none.
    pub async fn datablocks(&self, dataset: &DatasetId) -> Result<Vec<RegisteredDatablock>, RetrieveError> {
        let mut datablocks = self.catalogue.datablocks(dataset).await?;
        if datablocks.is_empty() {
            return Err(RetrieveError::NoDatablocks { dataset: dataset.clone() });
        }
        for datablock in &datablocks {
            let name = datablock.name();
            if matches!(name, "" | "." | "..") || name.chars().any(char::is_control) {
                return Err(RetrieveError::Name { archive_id: datablock.archive_id.to_string() });
            }
            // A link opens whatever it names: a record must not lead to the data of others.
            let below = datablock.archive_id.as_str().strip_prefix(&dataset.datablocks_prefix());
            if below.is_none_or(|path| MemberPath::new(path).is_err()) {
                let archive_id = datablock.archive_id.to_string();
                return Err(RetrieveError::Foreign { dataset: dataset.clone(), archive_id });
            }
        }
        datablocks.sort_by(|a, b| a.number().cmp(&b.number()).then_with(|| a.archive_id.cmp(&b.archive_id)));
        Ok(datablocks)
    }

    /// Asks for a datablock to be restored if its class needs that. Gives its state from before.
    pub async fn request_restore(
        &self,
        datablock: &RegisteredDatablock,
    ) -> Result<RestoreState, RetrieveError> {
        let address = self.address(datablock);
        let info = restore::request(self.store.as_ref(), &address, self.restore.days).await?;
        if info.size != datablock.packed_size {
            let registered = datablock.packed_size;
            return Err(RetrieveError::Size { address, registered, found: info.size });
        }
        Ok(info.restore)
    }

    /// Waits until all datablocks can be read, and checks that they are of the registered size.
    pub async fn await_readable(
        &self,
        dataset: &DatasetId,
        datablocks: &[RegisteredDatablock],
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<Vec<ReadableDatablock>, RetrieveError> {
        for datablock in datablocks {
            if cancel.is_cancelled() {
                return Err(RestoreError::Cancelled.into());
            }
            self.request_restore(datablock).await?;
        }
        let meter =
            progress.meter(datablocks.iter().map(|block| block.packed_size).sum(), datablocks.len() as u64);
        let objects = datablocks.iter().map(|block| (self.address(block), block.packed_size)).collect();
        restore::make_readable(self.store.as_ref(), objects, &self.restore, cancel, &meter).await?;
        let readable = |datablock: &RegisteredDatablock| ReadableDatablock {
            dataset: dataset.clone(),
            datablock: datablock.clone(),
        };
        Ok(datablocks.iter().map(readable).collect())
    }

    /// Links to datablocks that can be read.
    pub async fn publish(
        &self,
        readable: &[ReadableDatablock],
    ) -> Result<Vec<RetrievedDatablock>, RetrieveError> {
        let mut links = Vec::with_capacity(readable.len());
        for ReadableDatablock { dataset, datablock } in readable {
            let url = self.store.presign_get(&self.address(datablock), self.link_validity).await?;
            links.push(RetrievedDatablock {
                dataset_id: dataset.clone(),
                name: datablock.name().to_owned(),
                size: datablock.size,
                archive_id: datablock.archive_id.clone(),
                url,
                packed_size: datablock.packed_size,
            });
        }
        Ok(links)
    }

    fn address(&self, datablock: &RegisteredDatablock) -> ObjectAddress {
        ObjectAddress::new(&self.archive, &datablock.archive_id)
    }
}

#[cfg(test)]
#[path = "retrieve_tests.rs"]
mod tests;
