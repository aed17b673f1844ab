//! The pipeline of one datablock: objects → md5 → tar → parts → store.
//!
//! Three stages run at once, joined by bounded channels: a *feeder* reads the objects in order (small ones a few
//! ahead, so that their latency does not add up), a blocking thread digests and packs, and the *uploader* sends
//! parts. Memory is `part size × (parts in flight + 2)` and a few MiB for the feeder, whatever the dataset.
//!
//! Cancellation: through the token only. A future that is dropped midway leaves a multipart upload behind, which
//! the run's journal knows.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::landing::ArchivedSource;
use crate::progress::Meter;
use crate::source::{Chunk, SourceReader};
use crate::upload::{self, Part, Uploaded};
use crate::{
    ArchiveError, BucketName, DataFile, Datablock, ETag, Md5Digest, Md5Hasher, ObjectAddress, ObjectStore,
    PlannedDatablock, SourceFile, tarball,
};

/// Objects up to this size are read whole and ahead of their turn.
const READ_AHEAD_SIZE: u64 = 256 * 1024;

/// How many objects are read ahead.
const READ_AHEAD: usize = 16;

/// Chunks between feeder and packer.
const FEED_DEPTH: usize = 16;

/// A datablock whose tar the store has taken, not verified yet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoredDatablock {
    pub(crate) address: ObjectAddress,
    pub(crate) record: Arc<Datablock>,
    pub(crate) sources: Arc<[ArchivedSource]>,
    pub(crate) uploaded: Uploaded,
}

impl StoredDatablock {
    /// File name of the tar.
    pub fn name(&self) -> &str {
        self.address.key.file_name()
    }

    /// The record to be registered.
    pub fn record(&self) -> &Datablock {
        &self.record
    }

    /// The tag that the store gave the tar.
    pub fn etag(&self) -> &ETag {
        &self.uploaded.reported
    }
}

/// Where a datablock comes from and goes to.
pub(crate) struct Pipeline<'a> {
    pub(crate) store: &'a Arc<dyn ObjectStore>,
    pub(crate) landing: &'a BucketName,
    pub(crate) target: upload::Target<'a>,
    pub(crate) cancel: &'a CancellationToken,
}

/// Packs and uploads one datablock.
pub(crate) async fn store(
    pipeline: Pipeline<'_>,
    planned: &PlannedDatablock,
    meter: &Meter,
) -> Result<StoredDatablock, ArchiveError> {
    let packed_size = planned.packed_size();
    let part_size = pipeline.target.layout.part_size;
    let files = planned.shared_files();

    let (feed, chunks) = mpsc::channel(FEED_DEPTH);
    let (parts, arriving) = mpsc::channel(1);
    let packing = {
        let files = Arc::clone(&files);
        spawn_blocking(move || pack(&files, chunks, PartWriter::new(parts, part_size)))
    };
    let (store, landing, cancel, members) = (pipeline.store, pipeline.landing, pipeline.cancel, &files);
    // Takes the channel along: the packer waits for its end.
    let feeding = async move {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ArchiveError::Cancelled),
            result = feed_all(store, landing, members, &feed, meter) => result,
            // The packer gave up; its reason, or the uploader's, is the one to tell.
            () = feed.closed() => Ok(()),
        }
    };
    let uploading = upload::upload(pipeline.target, packed_size, arriving, cancel);
    let (read, packed, sent) = tokio::join!(feeding, packing, uploading);

    // The first stage that failed knows the cause; the others only saw their neighbour go.
    read?;
    let packed =
        packed.map_err(|error| ArchiveError::Broken(format!("the packing thread failed ({error})")))?;
    let packed = match (packed, sent) {
        (Ok(packed), Ok(uploaded)) => (packed, uploaded),
        (Err(PackError::Checksum(error)), _) => return Err(*error),
        (_, Err(error)) => return Err(error),
        (Err(PackError::Stopped(reason)), Ok(_)) => return Err(ArchiveError::Broken(reason.to_owned())),
    };
    Ok(record(planned, pipeline.target.address, packed_size, packed))
}

fn record(
    planned: &PlannedDatablock,
    address: &ObjectAddress,
    packed_size: u64,
    (packed, uploaded): (Vec<(Md5Digest, ETag)>, Uploaded),
) -> StoredDatablock {
    let (mut members, mut sources) = (Vec::with_capacity(packed.len()), Vec::with_capacity(packed.len()));
    for (file, (md5, etag)) in planned.files().iter().zip(packed) {
        members.push(DataFile {
            path: file.path.to_string(),
            size: file.size,
            time: file.last_modified,
            chk: md5,
            uid: "0",
            gid: "0",
            perm: "644",
        });
        sources.push(ArchivedSource {
            key: file.key.clone(),
            etag,
            size: file.size,
            last_modified: file.last_modified,
        });
    }
    let record = Datablock {
        archive_id: planned.archive_id().clone(),
        size: planned.unpacked_size(),
        packed_size,
        chk_alg: Datablock::CHECKSUM_ALGORITHM,
        version: Datablock::VERSION,
        data_file_list: members,
    };
    StoredDatablock { address: address.clone(), record: Arc::new(record), sources: sources.into(), uploaded }
}

/// Sends the content of all files, in order. Ends quietly when the packer has stopped: that one knows why.
async fn feed_all(
    store: &Arc<dyn ObjectStore>,
    landing: &BucketName,
    files: &[SourceFile],
    feed: &mpsc::Sender<Chunk>,
    meter: &Meter,
) -> Result<(), ArchiveError> {
    // Over indices: a closure over references would make this future unprovably `Send` for its callers.
    let mut opened =
        stream::iter(0..files.len()).map(|index| open(store, landing, &files[index])).buffered(READ_AHEAD);
    while let Some(opened) = opened.next().await {
        let mut reader = match opened? {
            Opened::Whole(bytes, etag) => {
                let size = bytes.len() as u64;
                if feed.send(Chunk::Data(bytes)).await.is_err() || feed.send(Chunk::End(etag)).await.is_err()
                {
                    return Ok(());
                }
                meter.add(size, 1);
                continue;
            }
            Opened::Unread(reader) => reader,
        };
        loop {
            let chunk = reader.next().await.map_err(ArchiveError::Source)?;
            let (size, ended) = match &chunk {
                Chunk::Data(bytes) => (bytes.len() as u64, false),
                Chunk::End(_) => (0, true),
            };
            if feed.send(chunk).await.is_err() {
                return Ok(());
            }
            meter.add(size, u64::from(ended));
            if ended {
                break;
            }
        }
    }
    Ok(())
}

enum Opened {
    Whole(Bytes, ETag),
    Unread(Box<SourceReader>),
}

/// Small objects are read by a task of their own, which goes on while an earlier object keeps the feeder busy;
/// large ones are opened when it is their turn, so that no connection idles.
fn open(
    store: &Arc<dyn ObjectStore>,
    landing: &BucketName,
    file: &SourceFile,
) -> BoxFuture<'static, Result<Opened, ArchiveError>> {
    let address = ObjectAddress::new(landing, &file.key);
    let reader = SourceReader::new(Arc::clone(store), address, file.size, file.etag.clone());
    if file.size > READ_AHEAD_SIZE {
        return futures_util::future::ready(Ok(Opened::Unread(Box::new(reader)))).boxed();
    }
    let reading = AbortOnDropHandle::new(tokio::spawn(reader.read_to_end()));
    async move {
        let (bytes, etag) = reading
            .await
            .map_err(|error| ArchiveError::Broken(format!("a reading task failed ({error})")))?
            .map_err(ArchiveError::Source)?;
        Ok(Opened::Whole(bytes, etag))
    }
    .boxed()
}

/// Why packing ended early.
enum PackError {
    /// A file is not what the catalogue lists.
    Checksum(Box<ArchiveError>),
    /// A neighbour in the pipeline went away.
    Stopped(&'static str),
}

/// Writes the tar. Gives digest and tag of each file.
fn pack(
    files: &[SourceFile],
    mut chunks: mpsc::Receiver<Chunk>,
    mut out: PartWriter,
) -> Result<Vec<(Md5Digest, ETag)>, PackError> {
    let mut packed = Vec::with_capacity(files.len());
    for file in files {
        out.write(&tarball::head(file.path.as_str(), file.size, file.last_modified.as_second()))?;
        let mut hasher = Md5Hasher::default();
        let mut size = 0;
        let etag = loop {
            match chunks.blocking_recv() {
                Some(Chunk::Data(bytes)) => {
                    hasher.update(&bytes);
                    size += bytes.len() as u64;
                    out.write(&bytes)?;
                }
                Some(Chunk::End(etag)) => break etag,
                None => return Err(PackError::Stopped("the feeder stopped")),
            }
        };
        if size != file.size {
            return Err(PackError::Stopped("the feeder sent a file of another size"));
        }
        let found = hasher.finish();
        if let Some(claimed) = file.claimed_md5.filter(|claimed| *claimed != found) {
            let error = ArchiveError::Checksum { path: file.path.clone(), claimed, found };
            return Err(PackError::Checksum(Box::new(error)));
        }
        out.write(tarball::padding(file.size))?;
        packed.push((found, etag));
    }
    out.write(&tarball::TRAILER)?;
    out.finish()?;
    Ok(packed)
}

/// Cuts what is written into parts of one size; the last may be shorter.
struct PartWriter {
    parts: mpsc::Sender<Part>,
    part_size: usize,
    filling: BytesMut,
}

impl PartWriter {
    fn new(parts: mpsc::Sender<Part>, part_size: usize) -> Self {
        Self { parts, part_size, filling: BytesMut::new() }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), PackError> {
        while !bytes.is_empty() {
            if self.filling.capacity() == 0 {
                self.filling.reserve(self.part_size);
            }
            let room = self.part_size - self.filling.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.filling.extend_from_slice(now);
            bytes = later;
            if self.filling.len() == self.part_size {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), PackError> {
        let part = Part(std::mem::take(&mut self.filling).freeze());
        self.parts.blocking_send(part).map_err(|_| PackError::Stopped("the uploader stopped"))
    }

    fn finish(mut self) -> Result<(), PackError> {
        if self.filling.is_empty() { Ok(()) } else { self.flush() }
    }
}
