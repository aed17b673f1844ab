//! Why archiving failed, and whose matter that is.

use crate::restore::RestoreError;
use crate::store::ListError;
use crate::{
    CatalogueError, DatasetId, Discrepancies, InvalidMemberPath, Md5Digest, MemberPath, ObjectAddress,
    ObjectKey, StoreError, VerifyError,
};

/// How many names a message gives before it only counts them.
const NAMED: usize = 10;

/// Names for a message.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Whose matter a failure is; decides the dataset's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The input is missing, unreadable or not what was declared.
    User,
    /// Everything else.
    System,
}

/// Why a dataset could not be archived. The landing zone is untouched in every case.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The catalogue has datablocks of this dataset, and they hold all that the landing zone holds.
    #[error("archive {dataset}: it is archived already ({count} datablocks, the first is {first})")]
    AlreadyArchived {
        /// The dataset.
        dataset: DatasetId,
        /// How many datablocks there are.
        count: usize,
        /// Archive id of the first.
        first: String,
        /// Number of files in the landing zone, all of which the datablocks hold.
        left: usize,
    },
    /// The catalogue has datablocks of this dataset, but they do not hold all that the landing zone holds.
    #[error(
        "archive {dataset}: it is archived in part: the registered datablocks ({}) do not hold {} files of the \
         landing zone ({})",
        some_of(.datablocks), .uncovered.len(), some_of(.uncovered)
    )]
    PartlyArchived {
        /// The dataset.
        dataset: DatasetId,
        /// Archive ids of the datablocks.
        datablocks: Vec<String>,
        /// Paths of the files in the landing zone that are in none of them.
        uncovered: Vec<String>,
        /// Number of files that are in a datablock and not in the landing zone.
        only_copies: usize,
    },
    /// Somebody else has written the tar since this run began.
    #[error("store {address}: another run has stored it in the meantime")]
    Occupied {
        /// The tar.
        address: ObjectAddress,
    },
    /// The catalogue has lost a datablock that this run registered.
    #[error("empty the landing zone: the catalogue does not name datablock {archive_id} any more")]
    Unregistered {
        /// Its archive id.
        archive_id: ObjectKey,
    },
    /// There is nothing to archive.
    #[error("archive {dataset}: there are no files in the landing zone below {prefix}")]
    LandingZoneEmpty {
        /// The dataset.
        dataset: DatasetId,
        /// Bucket and key prefix.
        prefix: String,
    },
    /// The catalogue lists no files.
    #[error("archive {dataset}: the catalogue lists no files for it")]
    NothingClaimed {
        /// The dataset.
        dataset: DatasetId,
    },
    /// The list of claimed files cannot be had.
    #[error("read the list of files of {dataset}")]
    Claims {
        /// The dataset.
        dataset: DatasetId,
        /// Why.
        #[source]
        source: CatalogueError,
    },
    /// The landing zone does not hold what the catalogue lists.
    #[error("find the listed files of {dataset} in the landing zone: {discrepancies}")]
    Discrepancies {
        /// The dataset.
        dataset: DatasetId,
        /// What differs.
        discrepancies: Discrepancies,
    },
    /// A file has a name under which it could not be unpacked.
    #[error(transparent)]
    Name(#[from] InvalidMemberPath),
    /// A name is that of a file and of a folder.
    #[error("accept file name {path:?}: other files lie below it as a folder")]
    FileAndFolder {
        /// The name.
        path: String,
    },
    /// A file's content is not what the catalogue lists.
    #[error("archive {path}: its md5 is {found}, the catalogue lists {claimed}")]
    Checksum {
        /// The file.
        path: MemberPath,
        /// As listed.
        claimed: Md5Digest,
        /// As read.
        found: Md5Digest,
    },
    /// A landing-zone object could not be read as it was listed.
    #[error("read an uploaded file")]
    Source(#[source] StoreError),
    /// There are more files than one dataset may have.
    #[error("list the files of {dataset}: there are more than {limit}")]
    TooManyFiles {
        /// The dataset.
        dataset: DatasetId,
        /// The limit.
        limit: usize,
    },
    /// The tar would not fit the store's largest object.
    #[error("store {address}: {size} bytes are more than one object can have")]
    TooLarge {
        /// Where.
        address: ObjectAddress,
        /// Bytes.
        size: u64,
    },
    /// The archived copy could not be proven.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A landing-zone object could not be made readable.
    #[error("make the landing zone readable")]
    Restore(#[source] RestoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The run was cancelled.
    #[error("finish: the run was cancelled")]
    Cancelled,
    /// A part of the pipeline ended without saying why: a defect.
    #[error("keep the pipeline running: {0}")]
    Broken(String),
}

impl ArchiveError {
    /// Whose matter it is.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::LandingZoneEmpty { .. }
            | Self::NothingClaimed { .. }
            | Self::Claims { .. }
            | Self::Discrepancies { .. }
            | Self::Name(_)
            | Self::FileAndFolder { .. }
            | Self::Checksum { .. }
            | Self::TooManyFiles { .. }
            | Self::Source(StoreError::Changed { .. } | StoreError::NotFound { .. }) => FailureClass::User,
            _ => FailureClass::System,
        }
    }

    /// Whether the same step may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Claims { source, .. } | Self::Catalogue(source) => source.is_transient(),
            Self::Source(error) | Self::Store(error) => error.is_transient(),
            Self::Restore(error) => error.is_transient(),
            Self::Verify(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Whether the run was cancelled rather than failed.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Cancelled | Self::Restore(RestoreError::Cancelled) | Self::Verify(VerifyError::Cancelled)
        )
    }

    /// Whether the dataset is archived already, as a whole: its lifecycle must be left as it is.
    pub fn already_archived(&self) -> bool {
        matches!(self, Self::AlreadyArchived { .. })
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::AlreadyArchived { left: 0, .. } => {
                "nothing is to be done: its datablocks are the archived copy"
            }
            Self::AlreadyArchived { left, .. } => {
                return Some(format!(
                    "the datablocks hold the {left} files that are still in the landing zone: an earlier run ended \
                     before it emptied it. Retrieve and check the dataset, then remove these files by hand and set \
                     its lifecycle to datasetOnArchiveDisk"
                ));
            }
            Self::PartlyArchived { only_copies: 0, .. } => {
                "all that the datablocks hold is in the landing zone as well: an earlier run ended between two \
                 registrations. Remove these datablocks from the catalogue, then start the job again; it \
                 replaces their tars"
            }
            Self::PartlyArchived { only_copies, .. } => {
                return Some(format!(
                    "keep the datablocks: they hold the only copy of {only_copies} files. The files they do not hold \
                     came later; archive them as a dataset of their own, or remove them from the landing zone"
                ));
            }
            Self::Occupied { .. } => {
                "only one run at a time may archive a dataset; start the job again when the other one has ended"
            }
            Self::Unregistered { .. } => {
                "keep the landing zone, and compare the dataset's datablocks with the archive bucket"
            }
            Self::LandingZoneEmpty { .. } => "upload the files, then start the archive job again",
            Self::NothingClaimed { .. } => {
                "register the dataset's files (origdatablocks), then start the job again"
            }
            Self::Discrepancies { .. } | Self::Checksum { .. } => {
                "upload the listed files again or correct the list, then start the job again"
            }
            Self::Name(_) | Self::FileAndFolder { .. } => {
                "rename the file, upload it again and correct the list"
            }
            Self::Source(StoreError::Changed { .. } | StoreError::NotFound { .. }) => {
                "files must not change while they are archived; finish the upload, then start the job again"
            }
            Self::Verify(VerifyError::Unprovable { .. }) => {
                "this store's tags prove nothing: choose a storage class that can be read back"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Turns a listing's error into this dataset's.
    pub(crate) fn listing(dataset: &DatasetId, error: ListError) -> Self {
        match error {
            ListError::TooMany { limit } => Self::TooManyFiles { dataset: dataset.clone(), limit },
            ListError::Store(error) => Self::Store(error),
        }
    }
}
