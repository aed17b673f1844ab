//! Datablocks as the catalogue knows them.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::{Md5Digest, ObjectKey};

/// A datablock's record: what is registered in the catalogue for one tar object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Datablock {
    /// Key of the tar object in the archive bucket.
    pub archive_id: ObjectKey,
    /// Sum of the sizes of the files, in bytes.
    pub size: u64,
    /// Size of the tar object, in bytes.
    pub packed_size: u64,
    /// Algorithm of the files' checksums; always `md5`.
    pub chk_alg: &'static str,
    /// Version of the record's format; always `1.0`.
    pub version: &'static str,
    /// The files, in the order in which they lie in the tar.
    pub data_file_list: Vec<DataFile>,
}

impl Datablock {
    /// The only checksum algorithm in use.
    pub const CHECKSUM_ALGORITHM: &'static str = "md5";
    /// The only record version in use.
    pub const VERSION: &'static str = "1.0";
}

/// One file of a datablock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataFile {
    /// Path within the dataset.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// When the landing-zone object was last modified (RFC 3339).
    pub time: Timestamp,
    /// MD5 of the content.
    pub chk: Md5Digest,
    /// Owner in the tar: always `0`.
    pub uid: &'static str,
    /// Group in the tar: always `0`.
    pub gid: &'static str,
    /// Permissions in the tar, octal: always `644`.
    pub perm: &'static str,
}

/// A file of a datablock that is in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    /// Path within the dataset.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Its md5, as written, where the catalogue has one.
    pub md5: Option<String>,
}

/// The catalogue's own id of a datablock record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatablockId(pub String);

impl fmt::Display for DatablockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A datablock that is in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredDatablock {
    /// The record's id.
    pub id: DatablockId,
    /// Key of the tar object in the archive bucket.
    pub archive_id: ObjectKey,
    /// Sum of the sizes of the files, in bytes.
    pub size: u64,
    /// Size of the tar object, in bytes.
    pub packed_size: u64,
}

impl RegisteredDatablock {
    /// File name of the tar.
    pub fn name(&self) -> &str {
        self.archive_id.file_name()
    }

    /// The number at the end of the tar name, by which datablocks are ordered; names without one come last.
    pub(crate) fn number(&self) -> u64 {
        let stem = self.name().strip_suffix(".tar").unwrap_or(self.name());
        stem.rsplit('_').next().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
    }
}
