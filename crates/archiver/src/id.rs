//! Names of things: datasets, jobs, buckets, objects, and where a dataset's objects lie in a bucket.
//!
//! The key layout is contract (catalogues, dashboards and download scripts use it):
//! `openem-network/datasets/{dataset}/raw_files/…` and `…/datablocks/{dataset, "/" as "-"}_{n}.tar`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Folder of all datasets within a bucket.
const DATASETS_ROOT: &str = "openem-network/datasets";

/// Longest dataset id accepted, in bytes: two copies of it and the layout fit an S3 key (1,024 bytes).
const MAX_DATASET_ID: usize = 400;

/// The id (pid) of a dataset; may hold slashes: `20.500.12345/0f3c…`.
///
/// Every slash-separated segment is non-empty and neither `.` nor `..`, and there are no control characters, so
/// an id can be a part of an object key, a file name or a comment line without escaping from it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatasetId(String);

/// A text that is no dataset id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read dataset id {text:?}: {reason}")]
pub struct InvalidDatasetId {
    text: String,
    reason: &'static str,
}

impl DatasetId {
    /// The id as text, slashes included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix of all keys of this dataset's uploaded files, with the final slash: a dataset whose id starts
    /// with this one's is not matched.
    pub fn raw_files_prefix(&self) -> String {
        format!("{DATASETS_ROOT}/{}/raw_files/", self.0)
    }

    /// The prefix of all keys of this dataset's datablocks, with the final slash.
    pub fn datablocks_prefix(&self) -> String {
        format!("{DATASETS_ROOT}/{}/datablocks/", self.0)
    }

    /// File name of datablock number `index`.
    pub fn tar_name(&self, index: usize) -> String {
        format!("{}_{index}.tar", self.flat_name())
    }

    /// Key of datablock number `index` in the archive bucket; this is its `archiveId`.
    pub fn tar_key(&self, index: usize) -> ObjectKey {
        ObjectKey(format!("{}{}", self.datablocks_prefix(), self.tar_name(index)))
    }

    /// The id as one file-name segment: slashes become dashes.
    pub fn flat_name(&self) -> String {
        self.0.replace('/', "-")
    }
}

impl TryFrom<String> for DatasetId {
    type Error = InvalidDatasetId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let reason = if text.is_empty() {
            "it is empty"
        } else if text.len() > MAX_DATASET_ID {
            "it is longer than 400 bytes"
        } else if text.chars().any(char::is_control) {
            "it holds a control character"
        } else if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            "it has an empty, \".\" or \"..\" segment"
        } else {
            return Ok(Self(text));
        };
        Err(InvalidDatasetId { text, reason })
    }
}

impl FromStr for DatasetId {
    type Err = InvalidDatasetId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl From<DatasetId> for String {
    fn from(id: DatasetId) -> Self {
        id.0
    }
}

impl fmt::Display for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of an archive or retrieve job in the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

/// A text that is no bucket name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "read bucket name {0:?}: it is empty or holds characters other than letters, digits, \".\", \"-\" and \"_\""
)]
pub struct InvalidBucketName(String);

impl BucketName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BucketName {
    type Err = InvalidBucketName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || !text.chars().all(plain) || matches!(text, "." | "..") {
            return Err(InvalidBucketName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of an object within its bucket, as the store spells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// A key exactly as a store or catalogue spelled it.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the last slash.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an object lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectAddress {
    /// The bucket.
    pub bucket: BucketName,
    /// The key within the bucket.
    pub key: ObjectKey,
}

impl ObjectAddress {
    /// The object `key` of `bucket`.
    pub fn new(bucket: &BucketName, key: &ObjectKey) -> Self {
        Self { bucket: bucket.clone(), key: key.clone() }
    }
}

impl fmt::Display for ObjectAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

/// The artifact key of a datablock: its tar name without `.tar`, in the alphabet that artifact keys allow
/// (lower-case letters, digits and dashes).
pub fn artifact_key(tar_name: &str) -> String {
    let stem = tar_name.strip_suffix(".tar").unwrap_or(tar_name);
    stem.to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dataset_ids_with_slashes_keep_them_in_keys_and_lose_them_in_tar_names() {
        let id: DatasetId = "20.500.12345/gold-0001".parse().unwrap();
        assert_eq!(id.raw_files_prefix(), "openem-network/datasets/20.500.12345/gold-0001/raw_files/");
        assert_eq!(
            id.tar_key(3).as_str(),
            "openem-network/datasets/20.500.12345/gold-0001/datablocks/20.500.12345-gold-0001_3.tar"
        );
        assert_eq!(id.tar_key(3).file_name(), "20.500.12345-gold-0001_3.tar");
    }

    #[test]
    fn ids_that_could_leave_their_folder_are_refused() {
        for bad in ["", "/", "a//b", "../a", "a/..", "a/./b", "/a", "a/", "a\nb", &"x".repeat(401)] {
            assert!(bad.parse::<DatasetId>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<DatasetId>("\"a/../b\"").is_err());
    }

    #[test]
    fn bucket_names_are_plain() {
        assert!("dev.landing_zone-1".parse::<BucketName>().is_ok());
        for bad in ["", "a/b", "a b", ".."] {
            assert!(bad.parse::<BucketName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn artifact_keys_keep_to_their_alphabet_even_for_capitals() {
        assert_eq!(artifact_key("20.500.12345-gold-0001_0.tar"), "20-500-12345-gold-0001-0");
        assert_eq!(artifact_key("ABC_dÉf_1.tar"), "abc-d-f-1");
    }
}
