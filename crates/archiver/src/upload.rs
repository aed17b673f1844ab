//! Sending a tar to the store: in one PUT if it is small, else in parts of which several travel at once.

use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;
use crate::{
    ArchiveError, ETag, Md5Digest, ObjectAddress, ObjectStore, PartNumber, StorageClass, StoreError,
    StoredPart, UploadId,
};

const MIB: u64 = 1024 * 1024;

/// Smallest part that S3 accepts (but for the last).
const MIN_PART_SIZE: u64 = 5 * MIB;

/// Largest part that S3 accepts.
const MAX_PART_SIZE: u64 = 5 * 1024 * MIB;

/// Memory that the parts of one datablock may take, where the size of the parts permits it.
const MEMORY_BUDGET: u64 = 128 * MIB;

/// A piece of a tar, in order.
#[derive(Debug)]
pub(crate) struct Part(pub(crate) Bytes);

/// How a tar is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of each part but the last.
    pub(crate) part_size: usize,
    /// Parts that travel at once.
    pub(crate) in_flight: usize,
}

impl Layout {
    /// Cuts `size` bytes into parts of `wanted` bytes, or larger ones if there would be too many; then fewer
    /// travel at once, since besides them one part is being filled and one waits.
    pub(crate) fn of(size: u64, wanted: u64, in_flight: usize) -> Option<Self> {
        let least = size.div_ceil(u64::from(PartNumber::MAX)).next_multiple_of(MIB);
        let part_size = wanted.max(least).max(MIN_PART_SIZE);
        if part_size > MAX_PART_SIZE {
            return None;
        }
        let affordable = (MEMORY_BUDGET / part_size).saturating_sub(2);
        let in_flight = in_flight.min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(1);
        Some(Self { part_size: usize::try_from(part_size).ok()?, in_flight })
    }
}

/// Where a tar goes and how.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) store: &'a Arc<dyn ObjectStore>,
    pub(crate) address: &'a ObjectAddress,
    pub(crate) class: Option<&'a StorageClass>,
    pub(crate) layout: Layout,
    pub(crate) journal: &'a Journal,
    /// Whether an object had this address before the run.
    pub(crate) preexisting: bool,
}

/// An object that the store says it has.
#[derive(Clone, Debug)]
pub(crate) struct Uploaded {
    /// The tag it has if the store computes tags from the content's md5.
    pub(crate) expected: ETag,
    /// The tag that the store gave it.
    pub(crate) reported: ETag,
}

/// Uploads the parts that arrive, `size` bytes in all. On failure no multipart upload is left open, unless the
/// store refuses even that; the journal knows it then.
pub(crate) async fn upload(
    target: Target<'_>,
    size: u64,
    mut parts: mpsc::Receiver<Part>,
    cancel: &CancellationToken,
) -> Result<Uploaded, ArchiveError> {
    if size <= target.layout.part_size as u64 {
        return upload_whole(target, size, &mut parts, cancel).await;
    }
    let upload = target.store.create_upload(target.address, target.class).await?;
    target.journal.upload_opened(target.address, &upload);
    let sent = send_parts(target, &upload, size, &mut parts, cancel).await;
    drop(parts);
    let result = match sent {
        // Likewise: the object may be assembled in spite of the cancellation.
        Ok(parts) => {
            unless(cancel, complete(target, &upload, size, &parts)).await.and_then(|completed| completed)
        }
        Err(error) => Err(error),
    };
    if result.is_err()
        && let Err(error) = target.store.abort_upload(target.address, &upload).await
    {
        tracing::warn!(object = %target.address, error = %error, "could not abort a multipart upload");
        return result;
    }
    target.journal.upload_closed(&upload);
    result
}

async fn upload_whole(
    target: Target<'_>,
    size: u64,
    parts: &mut mpsc::Receiver<Part>,
    cancel: &CancellationToken,
) -> Result<Uploaded, ArchiveError> {
    let Part(body) = next_part(parts, cancel).await?.ok_or_else(ended_early)?;
    if body.len() as u64 != size {
        return Err(ended_early());
    }
    let md5 = Md5Digest::of(&body);
    let expected = md5.to_etag();
    target.journal.object_written(target.address, [&expected], target.preexisting);
    // The journal knows of the object already: it may be there although nobody waited for the answer.
    let reported = unless(cancel, target.store.put(target.address, body, md5, target.class)).await??;
    target.journal.object_written(target.address, [&expected, &reported], target.preexisting);
    Ok(Uploaded { expected, reported })
}

async fn send_parts(
    target: Target<'_>,
    upload: &UploadId,
    size: u64,
    parts: &mut mpsc::Receiver<Part>,
    cancel: &CancellationToken,
) -> Result<Vec<(StoredPart, Md5Digest)>, ArchiveError> {
    let mut sending: JoinSet<Result<(StoredPart, Md5Digest), StoreError>> = JoinSet::new();
    let mut sent = Vec::new();
    let mut received = 0;
    for index in 0.. {
        // A slot first, the part then: a part that waits here would be one more in memory.
        while sending.len() >= target.layout.in_flight {
            sent.push(next_sent(&mut sending, cancel).await?);
        }
        let Some(Part(body)) = next_part(parts, cancel).await? else { break };
        received += body.len() as u64;
        let number = PartNumber::at_index(index)
            .ok_or_else(|| ArchiveError::Broken("more parts than were planned".to_owned()))?;
        let (store, address, upload) = (Arc::clone(target.store), target.address.clone(), upload.clone());
        sending.spawn(async move {
            let digested = body.clone();
            let md5 = spawn_blocking(move || Md5Digest::of(&digested)).await.map_err(|error| {
                StoreError::Unavailable {
                    action: "digest a part of",
                    target: address.to_string(),
                    source: error.into(),
                }
            })?;
            let etag = store.upload_part(&address, &upload, number, body, md5).await?;
            Ok((StoredPart { number, etag }, md5))
        });
    }
    if received != size {
        return Err(ended_early());
    }
    while !sending.is_empty() {
        sent.push(next_sent(&mut sending, cancel).await?);
    }
    sent.sort_by_key(|(part, _)| part.number);
    Ok(sent)
}

async fn next_part(
    parts: &mut mpsc::Receiver<Part>,
    cancel: &CancellationToken,
) -> Result<Option<Part>, ArchiveError> {
    unless(cancel, parts.recv()).await
}

/// The outcome of `future`, which is dropped when the run is cancelled.
async fn unless<F: Future>(cancel: &CancellationToken, future: F) -> Result<F::Output, ArchiveError> {
    cancel.run_until_cancelled(future).await.ok_or(ArchiveError::Cancelled)
}

async fn next_sent(
    sending: &mut JoinSet<Result<(StoredPart, Md5Digest), StoreError>>,
    cancel: &CancellationToken,
) -> Result<(StoredPart, Md5Digest), ArchiveError> {
    match unless(cancel, sending.join_next()).await? {
        Some(Ok(result)) => Ok(result?),
        Some(Err(error)) => Err(ArchiveError::Broken(format!("an uploading task failed ({error})"))),
        None => Err(ArchiveError::Broken("no part was travelling".to_owned())),
    }
}

/// Assembles the object. When the answer is lost, the object itself tells whether it was assembled.
async fn complete(
    target: Target<'_>,
    upload: &UploadId,
    size: u64,
    sent: &[(StoredPart, Md5Digest)],
) -> Result<Uploaded, ArchiveError> {
    let digests: Vec<_> = sent.iter().map(|(_, md5)| *md5).collect();
    let parts: Vec<_> = sent.iter().map(|(part, _)| part.clone()).collect();
    let expected = ETag::of_parts(&digests);
    target.journal.object_written(target.address, [&expected], target.preexisting);
    let reported = match target.store.complete_upload(target.address, upload, &parts).await {
        Ok(etag) => etag,
        Err(error @ (StoreError::Unavailable { .. } | StoreError::NotFound { .. })) => {
            match target.store.head(target.address).await {
                Ok(Some(info)) if info.etag == expected && info.size == size => {
                    // Should the object be an equal one from before, the upload would stay open.
                    target.store.abort_upload(target.address, upload).await?;
                    info.etag
                }
                _ => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    };
    target.journal.object_written(target.address, [&expected, &reported], target.preexisting);
    Ok(Uploaded { expected, reported })
}

fn ended_early() -> ArchiveError {
    ArchiveError::Broken("the tar ended early".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1024 * MIB;

    #[test]
    fn usual_tars_travel_in_the_wanted_parts() {
        assert_eq!(Layout::of(GIB, 16 * MIB, 4), Some(Layout { part_size: 16 << 20, in_flight: 4 }));
    }

    #[test]
    fn large_tars_get_larger_parts_and_fewer_travel_at_once() {
        let layout = Layout::of(500 * GIB, 16 * MIB, 4).unwrap();
        assert_eq!(layout, Layout { part_size: 52 << 20, in_flight: 1 });
    }

    #[test]
    fn what_no_store_can_take_is_refused() {
        assert_eq!(Layout::of(60_000 * 1024 * GIB, 16 * MIB, 4), None);
    }

    proptest! {
        #[test]
        fn there_are_never_too_many_parts_nor_too_much_memory(size in 0..5120 * GIB, wanted in 0..200 * MIB, n in 0_usize..64) {
            let layout = Layout::of(size, wanted, n).unwrap();
            let part_size = layout.part_size as u64;
            prop_assert!(size.div_ceil(part_size) <= u64::from(PartNumber::MAX));
            prop_assert!(part_size >= MIN_PART_SIZE && layout.in_flight >= 1);
            prop_assert!(part_size * (layout.in_flight as u64 + 2) <= MEMORY_BUDGET.max(3 * part_size));
        }
    }
}
