//! Bytes between the network and the disk: received with all their digests in one pass, sent in ranges.
//!
//! Disk work happens in blocking threads that talk to the network through short bounded channels.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum, Md5};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::object::Segment;

const ALGORITHMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];
const CHECKSUM_PREFIX: &str = "x-amz-checksum-";
const CHUNK: usize = 256 * 1024;
const CHUNKS_IN_FLIGHT: usize = 8;

/// A file of received bytes, removed again unless it is kept.
#[derive(Debug)]
pub(super) struct NewBlob {
    path: PathBuf,
    name: String,
    kept: bool,
}

impl NewBlob {
    fn new(dir: &Path) -> Self {
        let name = Uuid::new_v4().simple().to_string();
        Self { path: dir.join(&name), name, kept: false }
    }

    /// Keeps the file, which is now the caller's.
    pub(super) fn keep(mut self, size: u64) -> Segment {
        self.kept = true;
        Segment { blob: std::mem::take(&mut self.name), size }
    }
}

impl Drop for NewBlob {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "no blob to remove");
        }
    }
}

/// What was received.
#[derive(Debug)]
pub(super) struct Received {
    pub blob: NewBlob,
    pub size: u64,
    pub md5: [u8; 16],
    pub checksums: BTreeMap<String, String>,
}

/// What the client says about the bytes it sends.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    pub headers: &'a HeaderMap,
    pub trailers: Option<&'a TrailingHeaders>,
    pub content_length: Option<i64>,
}

impl Claims<'_> {
    /// The algorithms whose checksums are claimed, or announced for the trailer.
    fn algorithms(&self) -> Vec<&'static str> {
        let mut announced = String::new();
        for name in ["x-amz-trailer", "x-amz-sdk-checksum-algorithm"] {
            for value in self.headers.get_all(name) {
                announced.push(' ');
                announced.push_str(&value.to_str().unwrap_or_default().to_ascii_lowercase());
            }
        }
        let words: Vec<&str> =
            announced.split([' ', ',']).map(|w| w.trim_start_matches(CHECKSUM_PREFIX)).collect();
        ALGORITHMS
            .into_iter()
            .filter(|name| {
                self.headers.contains_key(format!("{CHECKSUM_PREFIX}{name}")) || words.contains(name)
            })
            .collect()
    }

    /// Compares what was claimed with what has arrived.
    fn verify(&self, received: &Received) -> S3Result<()> {
        if self.content_length.is_some_and(|length| u64::try_from(length) != Ok(received.size)) {
            return Err(s3_error!(IncompleteBody, "The body does not have the announced length"));
        }
        if let Some(claim) = self.headers.get("content-md5") {
            match BASE64_STANDARD.decode(claim.as_bytes()) {
                Ok(digest) if digest.len() == 16 => {
                    if digest != received.md5 {
                        return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match"));
                    }
                }
                _ => return Err(s3_error!(InvalidDigest, "The Content-MD5 you specified is not valid")),
            }
        }
        let trailers = self.trailers.and_then(TrailingHeaders::take).unwrap_or_default();
        for (algorithm, computed) in &received.checksums {
            let name = format!("{CHECKSUM_PREFIX}{algorithm}");
            let claim = self.headers.get(&name).or_else(|| trailers.get(&name));
            if claim.is_some_and(|claim| claim.as_bytes() != computed.as_bytes()) {
                return Err(s3_error!(BadDigest, "The {algorithm} you specified did not match"));
            }
        }
        Ok(())
    }
}

/// Receives a body into a new file of `dir` and verifies every claim about it.
pub(super) async fn receive(
    dir: &Path,
    body: Option<StreamingBlob>,
    claims: &Claims<'_>,
) -> S3Result<Received> {
    let blob = NewBlob::new(dir);
    let mut file = File::create(&blob.path).map_err(S3Error::internal_error)?;
    let mut hasher = hasher_for(&claims.algorithms());
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let writing = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
        let (mut md5, mut size) = (Md5::new(), 0_u64);
        while let Some(chunk) = chunks.blocking_recv() {
            file.write_all(&chunk)?;
            md5.update(&chunk);
            hasher.update(&chunk);
            size += chunk.len() as u64;
        }
        Ok((size, md5.finalize(), hasher.finalize()))
    });
    let mut failure = None;
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => {
                    if sender.send(chunk).await.is_err() {
                        // The writer has ended: it knows why.
                        break;
                    }
                }
                Err(error) => {
                    failure = Some(S3Error::with_source(s3s::S3ErrorCode::IncompleteBody, error));
                    break;
                }
            }
        }
    }
    drop(sender);
    let (size, md5, sums) =
        writing.await.map_err(S3Error::internal_error)?.map_err(S3Error::internal_error)?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let checksums = [
        ("crc32", sums.checksum_crc32),
        ("crc32c", sums.checksum_crc32c),
        ("crc64nvme", sums.checksum_crc64nvme),
        ("sha1", sums.checksum_sha1),
        ("sha256", sums.checksum_sha256),
    ];
    let checksums =
        checksums.into_iter().filter_map(|(name, sum)| sum.map(|sum| (name.to_owned(), sum))).collect();
    let received = Received { blob, size, md5, checksums };
    claims.verify(&received)?;
    Ok(received)
}

fn hasher_for(algorithms: &[&str]) -> ChecksumHasher {
    ChecksumHasher {
        crc32: algorithms.contains(&"crc32").then(Default::default),
        crc32c: algorithms.contains(&"crc32c").then(Default::default),
        crc64nvme: algorithms.contains(&"crc64nvme").then(Default::default),
        sha1: algorithms.contains(&"sha1").then(Default::default),
        sha256: algorithms.contains(&"sha256").then(Default::default),
    }
}

/// Sends a range of an object's bytes.
pub(super) fn send(dir: &Path, segments: Vec<Segment>, range: Range<u64>) -> StreamingBlob {
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_IN_FLIGHT);
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || {
        if let Err(error) =
            read_range(&dir, &segments, range, |chunk| sender.blocking_send(Ok(chunk)).is_ok())
            && sender.blocking_send(Err(error)).is_err()
        {
            tracing::debug!("the reader of an object left before its error");
        }
    });
    StreamingBlob::wrap(stream::poll_fn(move |context| receiver.poll_recv(context)))
}

/// Reads a range chunk by chunk until it ends or `take` wants no more.
pub(super) fn read_range(
    dir: &Path,
    segments: &[Segment],
    range: Range<u64>,
    mut take: impl FnMut(Bytes) -> bool,
) -> std::io::Result<()> {
    let mut start = 0;
    for segment in segments {
        let end = start + segment.size;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            let mut file = File::open(dir.join(&segment.blob))?;
            file.seek(SeekFrom::Start(from - start))?;
            let mut left = to - from;
            while left > 0 {
                let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
                file.read_exact(&mut chunk)?;
                left -= chunk.len() as u64;
                if !take(Bytes::from(chunk)) {
                    return Ok(());
                }
            }
        }
        start = end;
    }
    Ok(())
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        if write!(text, "{byte:02x}").is_err() {
            tracing::error!("failed to format a byte");
        }
        text
    })
}
