//! The port to a catalogue of datasets and jobs.

use std::fmt;

use async_trait::async_trait;

use crate::store::ErrorSource;
use crate::{
    ArchivedFile, Claims, Datablock, DatablockId, DatasetId, JobId, JobResult, JobStatus, LifecycleChange,
    LifecycleStatus, RegisteredDatablock,
};

/// A catalogue that knows datasets, what they consist of, where they are archived, and jobs.
#[async_trait]
pub trait Catalogue: fmt::Debug + Send + Sync {
    /// The datasets a job is about, in its order.
    async fn job_datasets(&self, job: JobId) -> Result<Vec<DatasetId>, CatalogueError>;

    /// How a job was last told to stand; `None` if it was told nothing, or words of others.
    async fn job_status(&self, job: JobId) -> Result<Option<JobStatus>, CatalogueError>;

    /// Tells how a job stands. A result replaces an earlier one; `None` keeps it.
    async fn update_job(
        &self,
        job: JobId,
        status: JobStatus,
        result: Option<&JobResult>,
    ) -> Result<(), CatalogueError>;

    /// Changes the named fields of a dataset's lifecycle, and nothing else of the dataset.
    async fn update_lifecycle(
        &self,
        dataset: &DatasetId,
        change: &LifecycleChange,
    ) -> Result<(), CatalogueError>;

    /// How archiving and retrieving a dataset stand.
    async fn lifecycle_status(&self, dataset: &DatasetId) -> Result<LifecycleStatus, CatalogueError>;

    /// The files that the dataset's owner claims to have uploaded.
    async fn claims(&self, dataset: &DatasetId) -> Result<Claims, CatalogueError>;

    /// The datablocks of a dataset.
    async fn datablocks(&self, dataset: &DatasetId) -> Result<Vec<RegisteredDatablock>, CatalogueError>;

    /// The files of all datablocks of a dataset.
    async fn archived_files(&self, dataset: &DatasetId) -> Result<Vec<ArchivedFile>, CatalogueError>;

    /// Registers a datablock. Idempotent: when the answer is lost the adapter finds out whether the record was
    /// made. Calls for one dataset must not overlap, since catalogues keep running totals.
    async fn register_datablock(
        &self,
        dataset: &DatasetId,
        datablock: &Datablock,
    ) -> Result<RegisteredDatablock, CatalogueError>;

    /// Removes a datablock's record; succeeds if it is gone already.
    async fn delete_datablock(&self, dataset: &DatasetId, id: &DatablockId) -> Result<(), CatalogueError>;
}

/// Why a catalogue did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The account's name or password is wrong.
    #[error("log in to the catalogue at {endpoint}: {message}")]
    Login {
        /// Where.
        endpoint: String,
        /// The catalogue's words.
        message: String,
    },
    /// The account may not do this.
    #[error("{action}: the catalogue does not allow it ({message})")]
    Denied {
        /// What was asked for.
        action: String,
        /// The catalogue's words.
        message: String,
    },
    /// The dataset, job or datablock is not known.
    #[error("{action}: the catalogue does not know it ({message})")]
    NotFound {
        /// What was asked for.
        action: String,
        /// The catalogue's words.
        message: String,
    },
    /// The catalogue answered that it will not do it.
    #[error("{action}: the catalogue refused with status {status} ({message})")]
    Refused {
        /// What was asked for.
        action: String,
        /// HTTP status.
        status: u16,
        /// The catalogue's words.
        message: String,
    },
    /// The answer cannot be understood.
    #[error("{action}: the catalogue's answer is malformed")]
    Malformed {
        /// What was asked for.
        action: String,
        /// What is wrong with it.
        #[source]
        source: ErrorSource,
    },
    /// The catalogue did not answer, or not in time, or answered that it cannot now.
    #[error("{action}: the catalogue is not available")]
    Unavailable {
        /// What was asked for.
        action: String,
        /// What went wrong.
        #[source]
        source: ErrorSource,
    },
}

impl CatalogueError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the catalogue has surely not done what it was asked: it said no. After other errors nobody knows.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Login { .. } | Self::Denied { .. } | Self::NotFound { .. } => true,
            Self::Refused { status, .. } => *status < 500,
            Self::Malformed { .. } | Self::Unavailable { .. } => false,
        }
    }
}
