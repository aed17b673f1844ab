//! The store in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;

use super::locked;
use crate::{
    BucketName, DeletionPermit, ETag, ListPage, ListedObject, Md5Digest, ObjectAddress, ObjectInfo,
    ObjectStore, OpenObject, PageToken, PartNumber, PresignedUrl, RestoreState, StorageClass, StoreError,
    StoredPart, UploadId,
};

/// Objects per page of a listing: small, so that tests meet several pages.
const PAGE: usize = 3;

/// Bytes per chunk of a body.
const CHUNK: usize = 64 * 1024;

/// Decides whether a call fails. It gets the call's name (that of the port's method) and the key or prefix.
pub type Fault = Box<dyn FnMut(&str, &str) -> Option<StoreError> + Send>;

/// An error that may pass.
pub fn unavailable(action: &'static str) -> StoreError {
    StoreError::Unavailable { action, target: "fake".to_owned(), source: "injected".into() }
}

/// A store in memory.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<StoreState>,
    fault: Mutex<Option<Fault>>,
}

#[derive(Default)]
struct StoreState {
    objects: BTreeMap<ObjectAddress, StoredObject>,
    uploads: BTreeMap<String, Upload>,
    calls: Vec<String>,
    clock: i64,
    opaque_tags: bool,
    unlisted_tags: bool,
    corrupt_stored: bool,
    break_bodies_after: Option<usize>,
    polls_until_restored: u32,
}

#[derive(Clone)]
struct StoredObject {
    content: Bytes,
    etag: ETag,
    modified: Timestamp,
    class: Option<StorageClass>,
    restore: RestoreState,
    polls: u32,
}

struct Upload {
    address: ObjectAddress,
    class: Option<StorageClass>,
    parts: BTreeMap<u16, (Bytes, Md5Digest)>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

impl MemoryStore {
    /// Puts an object there, as if somebody had uploaded it.
    pub fn insert(&self, address: ObjectAddress, content: impl Into<Bytes>, class: Option<StorageClass>) {
        locked(&self.state).insert(address, content.into(), class, None);
    }

    /// Puts an object there that has the tag of a multipart upload.
    pub fn insert_with_tag(&self, address: ObjectAddress, content: impl Into<Bytes>, tag: ETag) {
        locked(&self.state).insert(address, content.into(), None, Some(tag));
    }

    /// Replaces an object within the resolution of the store's clock: size and time need not tell.
    pub fn replace_in_the_same_instant(&self, address: &ObjectAddress, content: impl Into<Bytes>) {
        if let Some(object) = locked(&self.state).objects.get_mut(address) {
            object.content = content.into();
            object.etag = Md5Digest::of(&object.content).to_etag();
        }
    }

    /// Takes an object away, as if somebody had deleted it.
    pub fn remove(&self, address: &ObjectAddress) {
        locked(&self.state).objects.remove(address);
    }

    /// The keys of a bucket.
    pub fn keys(&self, bucket: &BucketName) -> Vec<String> {
        let state = locked(&self.state);
        state.objects.keys().filter(|at| at.bucket == *bucket).map(|at| at.key.to_string()).collect()
    }

    /// An object's content.
    pub fn content(&self, address: &ObjectAddress) -> Option<Bytes> {
        locked(&self.state).objects.get(address).map(|object| object.content.clone())
    }

    /// The storage class of an object.
    pub fn class(&self, address: &ObjectAddress) -> Option<StorageClass> {
        locked(&self.state).objects.get(address).and_then(|object| object.class.clone())
    }

    /// Number of multipart uploads that are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        locked(&self.state).uploads.len()
    }

    /// All calls so far, as `method key`.
    pub fn calls(&self) -> Vec<String> {
        locked(&self.state).calls.clone()
    }

    /// From now on `fault` decides which calls fail.
    pub fn set_fault(&self, fault: impl FnMut(&str, &str) -> Option<StoreError> + Send + 'static) {
        *locked(&self.fault) = Some(Box::new(fault));
    }

    /// From now on no call fails.
    pub fn clear_fault(&self) {
        *locked(&self.fault) = None;
    }

    /// From now on tags have nothing to do with the content.
    pub fn use_opaque_tags(&self) {
        locked(&self.state).opaque_tags = true;
    }

    /// From now on listings do not show tags.
    pub fn hide_tags_in_listings(&self) {
        locked(&self.state).unlisted_tags = true;
    }

    /// From now on what is stored differs in a byte from what was sent, and the tag does not tell.
    pub fn corrupt_what_is_stored(&self) {
        locked(&self.state).corrupt_stored = true;
    }

    /// From now on each body breaks off after so many chunks.
    pub fn break_bodies_after(&self, chunks: usize) {
        locked(&self.state).break_bodies_after = Some(chunks);
    }

    /// From now on a restore takes so many looks at the object.
    pub fn restore_takes(&self, polls: u32) {
        locked(&self.state).polls_until_restored = polls;
    }

    fn call(&self, method: &'static str, key: &str) -> Result<MutexGuard<'_, StoreState>, StoreError> {
        locked(&self.state).calls.push(format!("{method} {key}"));
        if let Some(error) = locked(&self.fault).as_mut().and_then(|fault| fault(method, key)) {
            return Err(error);
        }
        Ok(locked(&self.state))
    }
}

impl StoreState {
    fn insert(
        &mut self,
        address: ObjectAddress,
        content: Bytes,
        class: Option<StorageClass>,
        tag: Option<ETag>,
    ) -> ETag {
        self.clock += 1;
        let etag = if self.opaque_tags {
            ETag::new(&format!("opaque-{}", self.clock))
        } else {
            tag.unwrap_or_else(|| Md5Digest::of(&content).to_etag())
        };
        let content = if self.corrupt_stored { corrupted(&content) } else { content };
        let object = StoredObject {
            content,
            etag: etag.clone(),
            modified: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1_700_000_000 + self.clock),
            restore: RestoreState::from_headers(class.as_ref(), None),
            class,
            polls: 0,
        };
        self.objects.insert(address, object);
        etag
    }

    fn upload(
        &mut self,
        action: &'static str,
        address: &ObjectAddress,
        upload: &UploadId,
    ) -> Result<&mut Upload, StoreError> {
        self.uploads
            .get_mut(&upload.0)
            .filter(|open| open.address == *address)
            .ok_or_else(|| StoreError::NotFound { action, address: address.clone() })
    }
}

/// Flips a bit in the middle, which is in a file's content for tars with one large file.
fn corrupted(content: &Bytes) -> Bytes {
    let mut bytes = content.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn list(
        &self,
        bucket: &BucketName,
        prefix: &str,
        page: Option<&PageToken>,
    ) -> Result<ListPage, StoreError> {
        let state = self.call("list", prefix)?;
        let after = page.map_or("", |token| token.0.as_str());
        let mut matching = state.objects.iter().filter(|(at, _)| {
            at.bucket == *bucket && at.key.as_str().starts_with(prefix) && at.key.as_str() > after
        });
        let objects: Vec<_> = matching
            .by_ref()
            .take(PAGE)
            .map(|(at, object)| ListedObject {
                key: at.key.clone(),
                size: object.content.len() as u64,
                etag: (!state.unlisted_tags).then(|| object.etag.clone()),
                last_modified: object.modified,
                storage_class: object.class.clone(),
            })
            .collect();
        let more = matching.next().is_some();
        let next = objects.last().filter(|_| more).map(|last| PageToken(last.key.to_string()));
        Ok(ListPage { objects, next })
    }

    async fn head(&self, address: &ObjectAddress) -> Result<Option<ObjectInfo>, StoreError> {
        let mut state = self.call("head", address.key.as_str())?;
        let needed = state.polls_until_restored;
        Ok(state.objects.get_mut(address).map(|object| {
            if object.restore == RestoreState::UnderWay {
                object.polls += 1;
                if object.polls > needed {
                    object.restore = RestoreState::Restored;
                }
            }
            ObjectInfo {
                size: object.content.len() as u64,
                etag: object.etag.clone(),
                restore: object.restore,
            }
        }))
    }

    async fn get(
        &self,
        address: &ObjectAddress,
        _pin: Option<&ETag>,
        offset: u64,
    ) -> Result<OpenObject, StoreError> {
        let state = self.call("get", address.key.as_str())?;
        // The condition is not honoured, as with some real stores: callers must compare the tag.
        let object = state
            .objects
            .get(address)
            .ok_or_else(|| StoreError::NotFound { action: "read", address: address.clone() })?;
        if !object.restore.is_readable() {
            return Err(StoreError::Offline { address: address.clone() });
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(object.content.len());
        let rest = object.content.slice(start..);
        let mut chunks: Vec<Result<Bytes, StoreError>> =
            rest.chunks(CHUNK).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        if let Some(limit) = state.break_bodies_after.filter(|limit| *limit < chunks.len()) {
            chunks.truncate(limit);
            chunks.push(Err(unavailable("read")));
        }
        Ok(OpenObject {
            etag: object.etag.clone(),
            size: object.content.len() as u64,
            body: stream::iter(chunks).boxed(),
        })
    }

    async fn put(
        &self,
        address: &ObjectAddress,
        body: Bytes,
        md5: Md5Digest,
        class: Option<&StorageClass>,
    ) -> Result<ETag, StoreError> {
        let mut state = self.call("put", address.key.as_str())?;
        check_digest("store", address, &body, md5)?;
        Ok(state.insert(address.clone(), body, class.cloned(), None))
    }

    async fn create_upload(
        &self,
        address: &ObjectAddress,
        class: Option<&StorageClass>,
    ) -> Result<UploadId, StoreError> {
        let mut state = self.call("create_upload", address.key.as_str())?;
        state.clock += 1;
        let id = format!("upload-{}", state.clock);
        let upload = Upload { address: address.clone(), class: class.cloned(), parts: BTreeMap::new() };
        state.uploads.insert(id.clone(), upload);
        Ok(UploadId(id))
    }

    async fn upload_part(
        &self,
        address: &ObjectAddress,
        upload: &UploadId,
        number: PartNumber,
        body: Bytes,
        md5: Md5Digest,
    ) -> Result<ETag, StoreError> {
        let mut state = self.call("upload_part", address.key.as_str())?;
        check_digest("store a part of", address, &body, md5)?;
        state.upload("store a part of", address, upload)?.parts.insert(number.get(), (body, md5));
        Ok(md5.to_etag())
    }

    async fn complete_upload(
        &self,
        address: &ObjectAddress,
        upload: &UploadId,
        parts: &[StoredPart],
    ) -> Result<ETag, StoreError> {
        let mut state = self.call("complete_upload", address.key.as_str())?;
        let open = state.upload("complete", address, upload)?;
        let (mut content, mut digests) = (Vec::new(), Vec::new());
        for part in parts {
            let (bytes, md5) = open
                .parts
                .get(&part.number.get())
                .cloned()
                .ok_or_else(|| StoreError::NotFound { action: "complete", address: address.clone() })?;
            content.extend_from_slice(&bytes);
            digests.push(md5);
        }
        let class = open.class.clone();
        state.uploads.remove(&upload.0);
        Ok(state.insert(address.clone(), content.into(), class, Some(ETag::of_parts(&digests))))
    }

    async fn abort_upload(&self, address: &ObjectAddress, upload: &UploadId) -> Result<(), StoreError> {
        self.call("abort_upload", address.key.as_str())?.uploads.remove(&upload.0);
        Ok(())
    }

    async fn delete(&self, permit: &DeletionPermit) -> Result<(), StoreError> {
        let mut state = self.call("delete", permit.address().key.as_str())?;
        let found = state.objects.get(permit.address()).map(|object| &object.etag);
        if found.is_some_and(|etag| permit.tag().is_some_and(|tag| tag != etag)) {
            return Err(StoreError::Changed { address: permit.address().clone() });
        }
        state.objects.remove(permit.address());
        Ok(())
    }

    async fn request_restore(&self, address: &ObjectAddress, _days: u32) -> Result<(), StoreError> {
        let mut state = self.call("request_restore", address.key.as_str())?;
        let object = state
            .objects
            .get_mut(address)
            .ok_or_else(|| StoreError::NotFound { action: "restore", address: address.clone() })?;
        object.restore = RestoreState::UnderWay;
        Ok(())
    }

    async fn presign_get(
        &self,
        address: &ObjectAddress,
        validity: Duration,
    ) -> Result<PresignedUrl, StoreError> {
        Ok(PresignedUrl::new(format!("https://s3.example/{address}?expires={}", validity.as_secs())))
    }
}

fn check_digest(
    action: &'static str,
    address: &ObjectAddress,
    body: &[u8],
    md5: Md5Digest,
) -> Result<(), StoreError> {
    if Md5Digest::of(body) == md5 {
        return Ok(());
    }
    Err(StoreError::Refused {
        action,
        target: address.to_string(),
        code: "BadDigest".to_owned(),
        source: "the body does not have the digest".into(),
    })
}
