//! The archiving domain: datasets, datablocks, packing, digests and the ports to stores and catalogue.
//!
//! A dataset's files lie as objects in a *landing zone*. Archiving packs them into tar *datablocks* in an
//! archive bucket, as one stream per datablock: object → md5 → tar → parts → store. Nothing touches a disk and
//! memory is bounded (see [`Settings`]). Each step hands a value to the next that only that step can make:
//!
//! ```text
//! PlannedDatablock -> StoredDatablock -> VerifiedDatablock -> ArchivedDatablock -> DeletionPermit
//!   plan               store              verify               register             release
//! ```
//!
//! so that "a landing-zone object is deleted only after its archived copy was verified and registered" is a
//! fact of the types: [`ObjectStore::delete`] takes a [`DeletionPermit`], and nobody outside this crate can
//! make one.
//!
//! Invariants:
//! - a datablock is registered in the catalogue only after it is stored and verified;
//! - what a failing run undoes is what that very run did ([`DatasetRun::undo`]), never an earlier archive;
//! - a file is archived exactly as listed: an object that changes in between fails the datablock.
//!
//! The crate does no I/O of its own; stores and catalogues come in through [`ObjectStore`] and [`Catalogue`].

mod catalogue;
mod claim;
mod coverage;
mod datablock;
mod digest;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod id;
mod job;
mod journal;
mod landing;
mod member;
mod pack;
mod plan;
mod progress;
mod restore;
mod retrieve;
mod run;
mod script;
mod source;
mod store;
mod tarball;
mod upload;
mod verify;

pub use catalogue::{Catalogue, CatalogueError};
pub use claim::{Claim, Claims, Discrepancies, Discrepancy, Warning};
pub use datablock::{ArchivedFile, DataFile, Datablock, DatablockId, RegisteredDatablock};
pub use digest::{ETag, InvalidMd5, Md5Digest, Md5Hasher};
pub use error::{ArchiveError, FailureClass};
pub use id::{
    BucketName, DatasetId, InvalidBucketName, InvalidDatasetId, JobId, ObjectAddress, ObjectKey, artifact_key,
};
pub use job::{ArchiveStatus, JobResult, JobStatus, LifecycleChange, LifecycleStatus, RetrieveStatus};
pub use journal::UndoReport;
pub use landing::{Kept, Landed, Released, SourceFile};
pub use member::{InvalidMemberPath, MemberPath};
pub use pack::StoredDatablock;
pub use plan::{MAX_FILES_PER_DATABLOCK, MAX_RECORD_BYTES, Plan, PlannedDatablock};
pub use progress::{Progress, ProgressUpdate};
pub use restore::{RestoreError, RestoreSettings};
pub use retrieve::{PresignedUrl, ReadableDatablock, RetrieveError, RetrievedDatablock, Retriever};
pub use run::{ArchivedDatablock, Archiver, DatasetRun, Settings, Sites};
pub use script::download_script;
pub use store::{
    DeletionPermit, ErrorSource, ListPage, ListedObject, ObjectBody, ObjectInfo, ObjectStore, OpenObject,
    PageToken, PartNumber, RestoreState, StorageClass, StoreError, StoredPart, UploadId,
};
pub use verify::{Evidence, Verification, VerifiedDatablock, VerifyError};
