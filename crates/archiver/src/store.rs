//! The port to an object store.
//!
//! Adapters give every call a deadline and a bounded number of retries of their own; the domain adds retries only
//! where it knows more (resuming a read at an offset).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

use crate::retrieve::PresignedUrl;
use crate::{BucketName, ETag, Md5Digest, ObjectAddress, ObjectKey};

/// The cause of an adapter's error.
pub type ErrorSource = Box<dyn std::error::Error + Send + Sync>;

/// The bytes of an object, as they arrive.
pub type ObjectBody = BoxStream<'static, Result<Bytes, StoreError>>;

/// A store of objects in buckets, with the semantics of S3.
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync {
    /// One page of the objects whose key starts with `prefix`, in key order, from the beginning or from `page`.
    async fn list(
        &self,
        bucket: &BucketName,
        prefix: &str,
        page: Option<&PageToken>,
    ) -> Result<ListPage, StoreError>;

    /// What is known about an object; `None` if there is none.
    async fn head(&self, address: &ObjectAddress) -> Result<Option<ObjectInfo>, StoreError>;

    /// Opens an object for reading from byte `offset` on. With a `pin` the call fails with
    /// [`StoreError::Changed`] if the store can tell that the object has another tag; callers compare
    /// [`OpenObject::etag`] all the same, since not every store honours the condition.
    async fn get(
        &self,
        address: &ObjectAddress,
        pin: Option<&ETag>,
        offset: u64,
    ) -> Result<OpenObject, StoreError>;

    /// Stores an object whose content has the digest `md5`, which the store is asked to check.
    async fn put(
        &self,
        address: &ObjectAddress,
        body: Bytes,
        md5: Md5Digest,
        class: Option<&StorageClass>,
    ) -> Result<ETag, StoreError>;

    /// Begins a multipart upload. It costs storage until completed or aborted.
    async fn create_upload(
        &self,
        address: &ObjectAddress,
        class: Option<&StorageClass>,
    ) -> Result<UploadId, StoreError>;

    /// Uploads one part, in any order; the store is asked to check `md5`.
    async fn upload_part(
        &self,
        address: &ObjectAddress,
        upload: &UploadId,
        number: PartNumber,
        body: Bytes,
        md5: Md5Digest,
    ) -> Result<ETag, StoreError>;

    /// Assembles the object from its parts, given in ascending order.
    async fn complete_upload(
        &self,
        address: &ObjectAddress,
        upload: &UploadId,
        parts: &[StoredPart],
    ) -> Result<ETag, StoreError>;

    /// Discards a multipart upload; succeeds if it is gone already.
    async fn abort_upload(&self, address: &ObjectAddress, upload: &UploadId) -> Result<(), StoreError>;

    /// Deletes the object that `permit` names; succeeds if it is gone already. Fails with
    /// [`StoreError::Changed`] if the store can tell that the object has another tag than the permit's; callers
    /// look before, since not every store honours the condition.
    async fn delete(&self, permit: &DeletionPermit) -> Result<(), StoreError>;

    /// Asks for an archived object to be made readable for `days` days; succeeds if that is under way already.
    async fn request_restore(&self, address: &ObjectAddress, days: u32) -> Result<(), StoreError>;

    /// A link by which anybody can read the object for the time `validity`, at the address under which users
    /// reach the store. Does not check that the object exists.
    async fn presign_get(
        &self,
        address: &ObjectAddress,
        validity: Duration,
    ) -> Result<PresignedUrl, StoreError>;
}

/// Leave to delete one object. Only this crate can make one: from an archived datablock that holds a verified
/// copy of the object, or from the journal of a run that wrote the object itself.
#[derive(Debug)]
pub struct DeletionPermit {
    address: ObjectAddress,
    tag: Option<ETag>,
}

impl DeletionPermit {
    pub(crate) fn new(address: ObjectAddress, tag: ETag) -> Self {
        Self { address, tag: Some(tag) }
    }

    /// A permit without a proof, for tests of adapters.
    #[cfg(feature = "fake")]
    pub fn unproven(address: ObjectAddress, tag: Option<ETag>) -> Self {
        Self { address, tag }
    }

    /// The object that may be deleted.
    pub fn address(&self) -> &ObjectAddress {
        &self.address
    }

    /// The tag it must have.
    pub fn tag(&self) -> Option<&ETag> {
        self.tag.as_ref()
    }
}

/// One page of a listing.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// The objects, in key order.
    pub objects: Vec<ListedObject>,
    /// Where the next page begins, if there is one.
    pub next: Option<PageToken>,
}

/// Where a listing goes on.
#[derive(Clone, Debug)]
pub struct PageToken(pub String);

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its tag, where the store lists it.
    pub etag: Option<ETag>,
    /// When it was written.
    pub last_modified: Timestamp,
    /// Its storage class, where it has a special one.
    pub storage_class: Option<StorageClass>,
}

impl ListedObject {
    /// Whether it only marks a folder: clients make such objects, empty and with a final slash.
    pub(crate) fn is_folder_marker(&self) -> bool {
        self.size == 0 && self.key.as_str().ends_with('/')
    }
}

/// What is known about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its size in bytes.
    pub size: u64,
    /// Its tag.
    pub etag: ETag,
    /// Whether it can be read.
    pub restore: RestoreState,
}

/// An object opened for reading.
pub struct OpenObject {
    /// The tag of what is being read.
    pub etag: ETag,
    /// The size of the whole object, whatever the offset.
    pub size: u64,
    /// The bytes from the offset on.
    pub body: ObjectBody,
}

impl fmt::Debug for OpenObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenObject")
            .field("etag", &self.etag)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Whether an object can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreState {
    /// It is always readable.
    Online,
    /// It must be restored first, and nobody has asked for that.
    Offline,
    /// It is being restored.
    UnderWay,
    /// It has been restored and is readable for a while.
    Restored,
}

impl RestoreState {
    /// Whether a read would succeed now.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Online | Self::Restored)
    }

    /// Reads S3's `x-amz-restore` header beside the object's class.
    pub fn from_headers(class: Option<&StorageClass>, restore: Option<&str>) -> Self {
        match restore {
            Some(header) if header.contains("ongoing-request=\"true\"") => Self::UnderWay,
            Some(header) if header.contains("ongoing-request=\"false\"") => Self::Restored,
            _ if class.is_some_and(StorageClass::needs_restore) => Self::Offline,
            _ => Self::Online,
        }
    }
}

/// An S3 storage class, such as `STANDARD` or `GLACIER`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StorageClass(String);

impl StorageClass {
    /// A class as the store spells it.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as the store spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether objects of this class must be restored before they can be read.
    pub fn needs_restore(&self) -> bool {
        matches!(self.0.as_str(), "GLACIER" | "DEEP_ARCHIVE")
    }
}

impl FromStr for StorageClass {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(name))
    }
}

impl fmt::Display for StorageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The store's id of a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(pub String);

/// The number of a part, from 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartNumber(u16);

impl PartNumber {
    /// The highest number S3 accepts.
    pub const MAX: u16 = 10_000;

    /// The number of the part at `index`, which counts from 0.
    pub(crate) fn at_index(index: usize) -> Option<Self> {
        u16::try_from(index + 1).ok().filter(|number| *number <= Self::MAX).map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A part that the store has.
#[derive(Clone, Debug)]
pub struct StoredPart {
    /// Its number.
    pub number: PartNumber,
    /// The tag the store gave it.
    pub etag: ETag,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such bucket.
    #[error("find bucket {bucket}: the store has none of that name")]
    NoSuchBucket {
        /// Its name.
        bucket: BucketName,
    },
    /// There is no such object (or multipart upload).
    #[error("{action} {address}: it is not there")]
    NotFound {
        /// What was asked for.
        action: &'static str,
        /// The object.
        address: ObjectAddress,
    },
    /// The object is not the one that was listed.
    #[error("use {address}: it has changed since it was listed")]
    Changed {
        /// The object.
        address: ObjectAddress,
    },
    /// The object must be restored first.
    #[error("read {address}: it is archived offline and has not been restored")]
    Offline {
        /// The object.
        address: ObjectAddress,
    },
    /// The store answered that it will not do it.
    #[error("{action} {target}: the store refused ({code})")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// The object or bucket.
        target: String,
        /// The store's error code.
        code: String,
        /// The store's answer.
        #[source]
        source: ErrorSource,
    },
    /// The store did not answer, or not in time, or answered that it cannot now.
    #[error("{action} {target}: the store is not available")]
    Unavailable {
        /// What was asked for.
        action: &'static str,
        /// The object or bucket.
        target: String,
        /// What went wrong.
        #[source]
        source: ErrorSource,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// All objects below `prefix`, page by page, but at most `limit` of them: a listing is held in memory.
pub(crate) async fn list_all(
    store: &dyn ObjectStore,
    bucket: &BucketName,
    prefix: &str,
    limit: usize,
) -> Result<Vec<ListedObject>, ListError> {
    let mut objects = Vec::new();
    let mut page: Option<PageToken> = None;
    // A store whose pages are empty and never end is left after as many.
    for _ in 0..=limit {
        let listed = store.list(bucket, prefix, page.as_ref()).await?;
        objects.extend(listed.objects);
        if objects.len() > limit {
            return Err(ListError::TooMany { limit });
        }
        match listed.next {
            Some(next) => page = Some(next),
            None => return Ok(objects),
        }
    }
    Err(ListError::TooMany { limit })
}

/// Why a listing is not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("list at most {limit} objects: there are more")]
    TooMany { limit: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_state_follows_class_and_header() {
        let (glacier, instant) = (StorageClass::new("GLACIER"), StorageClass::new("GLACIER_IR"));
        let state = |class, header| RestoreState::from_headers(class, header);
        assert_eq!(state(None, None), RestoreState::Online);
        assert_eq!(state(Some(&instant), None), RestoreState::Online);
        assert_eq!(state(Some(&glacier), None), RestoreState::Offline);
        assert_eq!(state(Some(&glacier), Some("ongoing-request=\"true\"")), RestoreState::UnderWay);
        let done = "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2012 00:00:00 GMT\"";
        assert_eq!(state(Some(&glacier), Some(done)), RestoreState::Restored);
    }

    #[test]
    fn part_numbers_count_from_one_to_ten_thousand() {
        assert_eq!(PartNumber::at_index(0).map(PartNumber::get), Some(1));
        assert_eq!(PartNumber::at_index(9_999).map(PartNumber::get), Some(10_000));
        assert_eq!(PartNumber::at_index(10_000), None);
        assert_eq!(PartNumber::at_index(65_535), None);
    }
}
