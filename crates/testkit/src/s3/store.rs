//! Buckets, objects and uploads: an index in memory, mirrored in small JSON files, and the bytes in blobs.
//!
//! `buckets/{bucket}/{sha256 of the key}.json` describes an object, `uploads/{id}.json` an upload, `blobs/` holds
//! bytes under random names. A new object replaces its description by rename, so a reader of the directory
//! never meets half of one. The index is locked for moments only, never while bytes move.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use s3s::crypto::{Checksum, Md5, Sha256};
use s3s::{S3Error, S3Result, s3_error};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Restore;
use super::blob::{hex, read_range};
use super::object::{Headers, Object, Restoration, STANDARD, Segment, checked_class};

/// An object as a test sees it.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// The whole key.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// Storage class; `STANDARD` where none was named.
    pub class: String,
    /// Time of the last write.
    pub modified: SystemTime,
    /// The value of `x-amz-restore`.
    pub restore: Option<String>,
}

/// A multipart upload that is neither complete nor aborted.
#[derive(Clone, Debug)]
pub struct UploadInfo {
    /// The key it is for.
    pub key: String,
    /// Its id.
    pub upload_id: String,
    /// Numbers of the parts received so far.
    pub parts: Vec<i32>,
}

/// A part of an upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Part {
    pub segment: Segment,
    pub md5: [u8; 16],
    pub checksums: BTreeMap<String, String>,
    pub modified: Timestamp,
}

/// A multipart upload under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Upload {
    pub id: String,
    pub bucket: String,
    pub key: String,
    pub class: String,
    pub headers: Headers,
    pub initiated: Timestamp,
    pub parts: BTreeMap<i32, Part>,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub buckets: BTreeMap<String, BTreeMap<String, Object>>,
    pub uploads: BTreeMap<String, Upload>,
}

impl Index {
    pub(super) fn bucket(&self, bucket: &str) -> S3Result<&BTreeMap<String, Object>> {
        self.buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "The bucket {bucket} does not exist"))
    }

    pub(super) fn object(&mut self, bucket: &str, key: &str) -> S3Result<&mut Object> {
        let objects = self
            .buckets
            .get_mut(bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket, "The bucket {bucket} does not exist"))?;
        objects.get_mut(key).ok_or_else(|| s3_error!(NoSuchKey, "The key {key} does not exist"))
    }

    pub(super) fn upload(&mut self, bucket: &str, key: &str, id: &str) -> S3Result<&mut Upload> {
        self.bucket(bucket)?;
        self.uploads
            .get_mut(id)
            .filter(|upload| upload.bucket == bucket && upload.key == key)
            .ok_or_else(|| s3_error!(NoSuchUpload, "The upload {id} does not exist"))
    }
}

/// The storage of one server. Tests use it to prepare and to inspect, past the protocol.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    restore: Restore,
    index: Mutex<Index>,
}

impl Store {
    /// Opens a directory, making it where it is absent.
    pub(super) fn open(dir: &Path, restore: Restore) -> Result<Self> {
        for part in ["buckets", "uploads", "blobs"] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
        }
        let mut index = Index::default();
        for bucket in entries(&dir.join("buckets"))? {
            let name = bucket.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut objects = BTreeMap::new();
            for path in entries(&bucket)? {
                let object: Object = load(&path)?;
                objects.insert(object.key.clone(), object);
            }
            index.buckets.insert(name, objects);
        }
        for path in entries(&dir.join("uploads"))? {
            let upload: Upload = load(&path)?;
            index.uploads.insert(upload.id.clone(), upload);
        }
        Ok(Self { dir: dir.to_owned(), restore, index: Mutex::new(index) })
    }

    /// Creates a bucket unless it exists.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        let valid = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
            && bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
            && bucket.ends_with(|c: char| c.is_ascii_alphanumeric());
        ensure!(valid, "{bucket:?} is not a valid bucket name");
        let path = self.bucket_dir(bucket);
        std::fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
        self.index().buckets.entry(bucket.to_owned()).or_default();
        Ok(())
    }

    /// Stores an object of the standard class.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) -> Result<()> {
        self.put_class(bucket, key, bytes, STANDARD)
    }

    /// Stores an object of a given class.
    pub fn put_class(&self, bucket: &str, key: &str, bytes: &[u8], class: &str) -> Result<()> {
        let segment = Segment { blob: uuid::Uuid::new_v4().simple().to_string(), size: bytes.len() as u64 };
        std::fs::write(self.blobs().join(&segment.blob), bytes).context("failed to write a blob")?;
        let object = Object {
            key: key.to_owned(),
            size: segment.size,
            etag: hex(Md5::checksum(bytes).as_ref()),
            class: checked_class(Some(class))?,
            modified: Timestamp::now(),
            headers: Headers::default(),
            checksums: BTreeMap::new(),
            segments: vec![segment],
            multipart: false,
            restoration: None,
        };
        Ok(self.insert(bucket, object)?)
    }

    /// All bytes of an object, archived or not.
    pub fn get(&self, bucket: &str, key: &str) -> Result<Vec<u8>> {
        let object = self.index().object(bucket, key)?.clone();
        let mut bytes = Vec::new();
        read_range(&self.blobs(), &object.segments, 0..object.size, |chunk| {
            bytes.extend_from_slice(&chunk);
            true
        })
        .context("failed to read the blobs of an object")?;
        Ok(bytes)
    }

    /// The objects below a prefix, sorted by key.
    pub fn objects(&self, bucket: &str, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let index = self.index();
        let objects = index.bucket(bucket)?.values().filter(|object| object.key.starts_with(prefix));
        Ok(objects
            .map(|object| ObjectInfo {
                key: object.key.clone(),
                size: object.size,
                etag: object.etag.clone(),
                class: object.class.clone(),
                modified: object.modified.into(),
                restore: object.restore_header(),
            })
            .collect())
    }

    /// The uploads under way in a bucket.
    pub fn uploads(&self, bucket: &str) -> Result<Vec<UploadInfo>> {
        let index = self.index();
        index.bucket(bucket)?;
        let uploads = index.uploads.values().filter(|upload| upload.bucket == bucket);
        Ok(uploads
            .map(|upload| UploadInfo {
                key: upload.key.clone(),
                upload_id: upload.id.clone(),
                parts: upload.parts.keys().copied().collect(),
            })
            .collect())
    }

    /// Flips the bits of the middle byte of an object, as a rotten disk would: size and `ETag` stay.
    pub fn corrupt(&self, bucket: &str, key: &str) -> Result<()> {
        let object = self.index().object(bucket, key)?.clone();
        let segment = object.segments.iter().find(|segment| segment.size > 0);
        let segment = segment.with_context(|| format!("{key} has no bytes to corrupt"))?;
        let path = self.blobs().join(&segment.blob);
        let file =
            std::fs::File::options().read(true).write(true).open(path).context("failed to open a blob")?;
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, segment.size / 2)
            .and_then(|()| std::os::unix::fs::FileExt::write_all_at(&file, &[!byte[0]], segment.size / 2))
            .context("failed to corrupt a blob")
    }

    /// Deletes an object; absent ones are no error.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        Ok(self.remove(bucket, key)?)
    }

    /// Ends every restore that is under way.
    pub fn finish_restores(&self) {
        let now = Timestamp::now();
        self.index().buckets.values_mut().flat_map(BTreeMap::values_mut).for_each(|o| o.finish_restore(now));
    }

    /// Lets every restored copy expire.
    pub fn expire_restores(&self) {
        for object in self.index().buckets.values_mut().flat_map(BTreeMap::values_mut) {
            if matches!(object.restoration, Some(Restoration::Done { .. })) {
                object.restoration = None;
            }
        }
    }

    /// How long restores take.
    pub(super) fn restore_delay(&self) -> Restore {
        self.restore
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    pub(super) fn bucket_dir(&self, bucket: &str) -> PathBuf {
        self.dir.join("buckets").join(bucket)
    }

    /// Makes an object visible, in place of an older one.
    pub(super) fn insert(&self, bucket: &str, object: Object) -> S3Result<()> {
        self.insert_into(&mut self.index(), bucket, object)
    }

    /// The same under a lock that the caller holds, so that a condition checked before still holds.
    pub(super) fn insert_into(&self, index: &mut Index, bucket: &str, object: Object) -> S3Result<()> {
        let Some(objects) = index.buckets.get_mut(bucket) else {
            self.remove_blobs(&object.segments);
            return Err(s3_error!(NoSuchBucket, "The bucket {bucket} does not exist"));
        };
        self.save(&self.object_path(bucket, &object.key), &object)?;
        if let Some(old) = objects.insert(object.key.clone(), object) {
            self.remove_blobs(&old.segments);
        }
        Ok(())
    }

    pub(super) fn remove(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.remove_from(&mut self.index(), bucket, key)
    }

    /// The same under a lock that the caller holds, so that a condition checked before still holds.
    pub(super) fn remove_from(&self, index: &mut Index, bucket: &str, key: &str) -> S3Result<()> {
        index.bucket(bucket)?;
        if let Some(object) = index.buckets.get_mut(bucket).and_then(|objects| objects.remove(key)) {
            std::fs::remove_file(self.object_path(bucket, key)).map_err(S3Error::internal_error)?;
            self.remove_blobs(&object.segments);
        }
        Ok(())
    }

    /// Writes down what has changed about an object, such as its restore.
    pub(super) fn save_object(&self, bucket: &str, object: &Object) -> S3Result<()> {
        self.save(&self.object_path(bucket, &object.key), object)
    }

    pub(super) fn save_upload(&self, upload: &Upload) -> S3Result<()> {
        self.save(&self.upload_path(&upload.id), upload)
    }

    /// Forgets an upload; its blobs are the caller's now.
    pub(super) fn take_upload(&self, index: &mut Index, id: &str) -> S3Result<Option<Upload>> {
        let upload = index.uploads.remove(id);
        if upload.is_some() {
            std::fs::remove_file(self.upload_path(id)).map_err(S3Error::internal_error)?;
        }
        Ok(upload)
    }

    pub(super) fn remove_blobs<'a>(&self, segments: impl IntoIterator<Item = &'a Segment>) {
        for segment in segments {
            if let Err(error) = std::fs::remove_file(self.blobs().join(&segment.blob)) {
                tracing::warn!(%error, blob = %segment.blob, "failed to remove a blob");
            }
        }
    }

    fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.bucket_dir(bucket).join(format!("{}.json", hex(Sha256::checksum(key.as_bytes()).as_ref())))
    }

    fn upload_path(&self, id: &str) -> PathBuf {
        self.dir.join("uploads").join(format!("{id}.json"))
    }

    fn save(&self, path: &Path, value: &impl Serialize) -> S3Result<()> {
        let text = serde_json::to_vec(value).map_err(S3Error::internal_error)?;
        let draft = self.dir.join(format!(".draft-{}", uuid::Uuid::new_v4().simple()));
        std::fs::write(&draft, text).map_err(S3Error::internal_error)?;
        std::fs::rename(&draft, path).map_err(S3Error::internal_error)
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("failed to read {}", dir.display()))
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("failed to understand {}", path.display()))
}
