//! Proof that the archived copy is what was read.
//!
//! Two kinds of evidence: the store's own tag, where it is the md5 of the parts' md5s (the parts were checked on
//! arrival); or the object itself, read back and compared member by member. What can be read is read back by
//! default, since a tag says what the store received, not what it would return.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::landing::ArchivedSource;
use crate::progress::Meter;
use crate::source::{Chunk, SourceReader};
use crate::{DataFile, Datablock, ETag, ObjectAddress, ObjectStore, StoreError, StoredDatablock, tarball};

/// Chunks between the reader and the comparing thread.
const DEPTH: usize = 16;

/// Which evidence is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// Read back what can be read without a restore; else the tag.
    #[default]
    Auto,
    /// Read back, always.
    ReadBack,
    /// The tag, always.
    ETag,
}

/// What proves an archived copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It was read back and compared.
    ReadBack,
    /// Its tag binds the content.
    ETag,
}

/// A datablock whose archived copy is proven. Only verification makes one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VerifiedDatablock {
    pub(crate) address: ObjectAddress,
    pub(crate) record: Arc<Datablock>,
    pub(crate) sources: Arc<[ArchivedSource]>,
    pub(crate) etag: ETag,
    evidence: Evidence,
}

impl VerifiedDatablock {
    /// File name of the tar.
    pub fn name(&self) -> &str {
        self.address.key.file_name()
    }

    /// The record to be registered.
    pub fn record(&self) -> &Datablock {
        &self.record
    }

    /// What the proof rests on.
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }
}

/// Why an archived copy is not proven.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no archived copy.
    #[error("verify {address}: it is not in the store")]
    Missing {
        /// The tar.
        address: ObjectAddress,
    },
    /// The archived copy is not the one this run stored.
    #[error("verify {address}: the store holds another object than was sent ({found} instead of {expected})")]
    Replaced {
        /// The tar.
        address: ObjectAddress,
        /// Size and tag as sent.
        expected: String,
        /// Size and tag as found.
        found: String,
    },
    /// The tag is not that of the content, and the copy is not to be read.
    #[error("verify {address}: the store's tag {found} is not the digest of what was sent ({expected})")]
    Unprovable {
        /// The tar.
        address: ObjectAddress,
        /// The digest of the parts.
        expected: ETag,
        /// The store's tag.
        found: ETag,
    },
    /// The archived copy differs from what was read from the landing zone.
    #[error("verify {address}: its content is not what was sent ({detail})")]
    Content {
        /// The tar.
        address: ObjectAddress,
        /// The first difference.
        detail: String,
    },
    /// The archived copy cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run was cancelled.
    #[error("finish verifying: the run was cancelled")]
    Cancelled,
}

impl VerifyError {
    /// Whether verification may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// Proves `stored`.
pub(crate) async fn verify(
    store: &Arc<dyn ObjectStore>,
    stored: StoredDatablock,
    verification: Verification,
    cancel: &CancellationToken,
    meter: &Meter,
) -> Result<VerifiedDatablock, VerifyError> {
    let StoredDatablock { address, record, sources, uploaded } = stored;
    let info =
        store.head(&address).await?.ok_or_else(|| VerifyError::Missing { address: address.clone() })?;
    if info.size != record.packed_size || info.etag != uploaded.reported {
        return Err(VerifyError::Replaced {
            expected: format!("{} bytes, tag {}", record.packed_size, uploaded.reported),
            found: format!("{} bytes, tag {}", info.size, info.etag),
            address,
        });
    }
    let evidence = match verification {
        Verification::ReadBack => Evidence::ReadBack,
        Verification::Auto if info.restore.is_readable() => Evidence::ReadBack,
        Verification::Auto | Verification::ETag => Evidence::ETag,
    };
    match evidence {
        Evidence::ETag if info.etag == uploaded.expected => {}
        Evidence::ETag => {
            return Err(VerifyError::Unprovable { address, expected: uploaded.expected, found: info.etag });
        }
        Evidence::ReadBack => {
            let reader =
                SourceReader::new(Arc::clone(store), address.clone(), info.size, Some(info.etag.clone()));
            read_back(reader, &address, &record, cancel, meter).await?;
        }
    }
    Ok(VerifiedDatablock { address, record, sources, etag: info.etag, evidence })
}

/// Reads the tar and compares it with its record.
async fn read_back(
    mut reader: SourceReader,
    address: &ObjectAddress,
    record: &Arc<Datablock>,
    cancel: &CancellationToken,
    meter: &Meter,
) -> Result<(), VerifyError> {
    let (sender, receiver) = mpsc::channel::<Bytes>(DEPTH);
    let record = Arc::clone(record);
    let comparing = spawn_blocking(move || {
        compare(ChunkReader { receiver, current: Bytes::new() }, &record.data_file_list)
    });
    let reading = async move {
        loop {
            let chunk = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(VerifyError::Cancelled),
                chunk = reader.next() => chunk,
            };
            match chunk? {
                Chunk::Data(bytes) => {
                    let size = bytes.len() as u64;
                    if sender.send(bytes).await.is_err() {
                        // The comparison has found a difference.
                        return Ok(());
                    }
                    meter.add(size, 0);
                }
                Chunk::End(_) => return Ok(()),
            }
        }
    };
    let (read, compared) = tokio::join!(reading, comparing);
    read?;
    let content = |detail| VerifyError::Content { address: address.clone(), detail };
    compared.map_err(|error| content(format!("the comparing thread failed: {error}")))?.map_err(content)?;
    meter.add(0, 1);
    Ok(())
}

/// Compares an archive with the members it should have; tells the first difference.
fn compare(reader: impl Read, expected: &[DataFile]) -> Result<(), String> {
    let mut expected = expected.iter();
    tarball::read_members(reader, |member| match expected.next() {
        Some(file) if file.path == member.path && file.size == member.size && file.chk == member.md5 => {
            Ok(())
        }
        Some(file) => Err(Difference(format!(
            "{} ({} bytes, md5 {}) instead of {} ({} bytes, md5 {})",
            member.path, member.size, member.md5, file.path, file.size, file.chk
        ))),
        None => Err(Difference(format!("{} is one file too many", member.path))),
    })
    .map_err(|Difference(text)| text)?;
    expected.next().map_or(Ok(()), |file| Err(format!("{} is missing", file.path)))
}

struct Difference(String);

impl From<io::Error> for Difference {
    fn from(error: io::Error) -> Self {
        Self(format!("it is no readable tar: {error}"))
    }
}

/// The receiving end of a channel as a blocking reader.
struct ChunkReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}
