//! The landing zone: what users have uploaded, and its removal once it is archived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;

use crate::run::ArchivedDatablock;
use crate::store::list_all;
use crate::{
    ArchiveError, BucketName, DatasetId, DeletionPermit, ETag, ListedObject, Md5Digest, MemberPath,
    ObjectAddress, ObjectInfo, ObjectKey, ObjectStore, StorageClass, StoreError, Warning,
};

/// Most files in one dataset: its listing is held in memory, about 300 bytes for each.
pub(crate) const MAX_FILES: usize = 200_000;

/// Requests in flight while a landing zone is emptied.
const CONCURRENT_DELETIONS: usize = 16;

/// A file in the landing zone, as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path within the dataset.
    pub path: MemberPath,
    /// Its object.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its tag, where the store lists it.
    pub etag: Option<ETag>,
    /// When it was uploaded.
    pub last_modified: Timestamp,
    /// Its storage class, where it has a special one.
    pub storage_class: Option<StorageClass>,
    /// The md5 that the catalogue lists.
    pub claimed_md5: Option<Md5Digest>,
}

/// The files of a dataset in the landing zone; never empty.
#[derive(Clone, Debug)]
pub struct Landed {
    pub(crate) files: Vec<SourceFile>,
    pub(crate) warnings: Vec<Warning>,
}

impl Landed {
    /// The files, in key order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Sum of their sizes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// What became of the landing zone of an archived dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Objects deleted.
    pub deleted: usize,
    /// Objects left where they are.
    pub kept: Vec<Kept>,
}

/// An object that was not deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its key.
    pub key: ObjectKey,
    /// Why.
    pub reason: &'static str,
}

/// Lists the dataset's files.
pub(crate) async fn list(
    store: &dyn ObjectStore,
    bucket: &BucketName,
    dataset: &DatasetId,
) -> Result<Landed, ArchiveError> {
    let prefix = dataset.raw_files_prefix();
    let listed = list_all(store, bucket, &prefix, MAX_FILES)
        .await
        .map_err(|error| ArchiveError::listing(dataset, error))?;
    let (mut files, mut warnings) = (Vec::with_capacity(listed.len()), Vec::new());
    for object in listed {
        let Some(path) = object.key.as_str().strip_prefix(&prefix) else { continue };
        if object.is_folder_marker() {
            warnings.push(Warning::FolderMarker { key: object.key.to_string() });
            continue;
        }
        files.push(SourceFile {
            path: MemberPath::new(path)?,
            key: object.key,
            size: object.size,
            etag: object.etag,
            last_modified: object.last_modified,
            storage_class: object.storage_class,
            claimed_md5: None,
        });
    }
    if files.is_empty() {
        return Err(ArchiveError::LandingZoneEmpty {
            dataset: dataset.clone(),
            prefix: format!("{bucket}/{prefix}"),
        });
    }
    refuse_files_that_are_folders(&files)?;
    Ok(Landed { files, warnings })
}

/// `a` and `a/b` can both be objects, but not both be unpacked.
fn refuse_files_that_are_folders(files: &[SourceFile]) -> Result<(), ArchiveError> {
    let names: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for folder in files.iter().flat_map(|file| file.path.folders()) {
        if names.contains(folder) {
            return Err(ArchiveError::FileAndFolder { path: folder.to_owned() });
        }
    }
    Ok(())
}

/// The object of a member that lies in an archived datablock, exactly as it was read.
#[derive(Clone, Debug)]
pub(crate) struct ArchivedSource {
    pub(crate) key: ObjectKey,
    pub(crate) etag: ETag,
    pub(crate) size: u64,
    pub(crate) last_modified: Timestamp,
}

/// Deletes the objects whose archived copies `archived` proves, unless they have changed since they were read.
pub(crate) async fn release(
    store: &Arc<dyn ObjectStore>,
    bucket: &BucketName,
    dataset: &DatasetId,
    archived: &[ArchivedDatablock],
) -> Result<Released, ArchiveError> {
    let prefix = dataset.raw_files_prefix();
    let listed = list_all(store.as_ref(), bucket, &prefix, 2 * MAX_FILES)
        .await
        .map_err(|error| ArchiveError::listing(dataset, error))?;
    let mut present: BTreeMap<ObjectKey, ListedObject> =
        listed.into_iter().map(|object| (object.key.clone(), object)).collect();

    let mut pairs = Vec::new();
    for source in archived.iter().flat_map(ArchivedDatablock::sources) {
        if let Some(object) = present.remove(&source.key) {
            pairs.push((source, object));
        }
    }
    let mut released = Released::default();
    let reason = "it was uploaded after the dataset was listed, or marks a folder";
    released.kept.extend(present.into_keys().map(|key| Kept { key, reason }));

    let release_at = |index: usize| {
        let (source, object): &(&ArchivedSource, ListedObject) = &pairs[index];
        release_one(store.as_ref(), bucket, source, object)
    };
    // Over indices: a closure over references would make this future unprovably `Send` for its callers.
    let mut outcomes = stream::iter(0..pairs.len()).map(release_at).buffer_unordered(CONCURRENT_DELETIONS);
    while let Some(kept) = outcomes.try_next().await? {
        match kept {
            None => released.deleted += 1,
            Some(kept) => released.kept.push(kept),
        }
    }
    Ok(released)
}

async fn release_one(
    store: &dyn ObjectStore,
    bucket: &BucketName,
    source: &ArchivedSource,
    listed: &ListedObject,
) -> Result<Option<Kept>, StoreError> {
    let address = ObjectAddress::new(bucket, &source.key);
    let changed = Kept { key: source.key.clone(), reason: "it has changed since it was archived" };
    if listed.size != source.size || listed.last_modified != source.last_modified {
        return Ok(Some(changed));
    }
    // A landing zone takes a while to empty: what was listed at the beginning may have been replaced since.
    let unchanged = |info: &ObjectInfo| info.etag == source.etag && info.size == source.size;
    match store.head(&address).await? {
        None => return Ok(None),
        Some(info) if !unchanged(&info) => return Ok(Some(changed)),
        Some(_) => {}
    }
    match store.delete(&DeletionPermit::new(address.clone(), source.etag.clone())).await {
        Ok(()) => Ok(None),
        // Replaced a moment ago; or deleted by an attempt whose answer was lost.
        Err(StoreError::Changed { .. }) => Ok(store.head(&address).await?.map(|_| changed)),
        Err(error) => Err(error),
    }
}

/// A file of a dataset `20.500/x`, for tests.
#[cfg(test)]
pub(crate) fn source_file(path: &str, size: u64) -> SourceFile {
    SourceFile {
        path: MemberPath::new(path).unwrap(),
        key: ObjectKey::new(format!("openem-network/datasets/20.500/x/raw_files/{path}")),
        size,
        etag: None,
        last_modified: Timestamp::UNIX_EPOCH,
        storage_class: None,
        claimed_md5: None,
    }
}
