//! Multipart uploads. Completing one moves no bytes: the object takes over the parts as its segments.

use std::collections::BTreeMap;

use jiff::Timestamp;
use s3s::crypto::{Checksum, Md5};
use s3s::dto;
use s3s::{S3Request, S3Result, s3_error};
use uuid::Uuid;

use super::blob::{self, Claims, hex};
use super::listing::encoded;
use super::object::{Headers, Object, checked_class};
use super::service::{check_write, etag, length, timestamp};
use super::store::{Part, Store, Upload};

/// Every part but the last has at least this many bytes.
const SMALLEST_PART: u64 = 5 * 1024 * 1024;

/// Numbers that parts may have.
const PART_NUMBERS: std::ops::RangeInclusive<i32> = 1..=10_000;

/// Most entries of a page.
const PAGE: i32 = 1000;

pub(super) fn create(
    store: &Store,
    req: S3Request<dto::CreateMultipartUploadInput>,
) -> S3Result<dto::CreateMultipartUploadOutput> {
    let input = req.input;
    let class = checked_class(input.storage_class.as_ref().map(dto::StorageClass::as_str))?;
    let upload = Upload {
        id: Uuid::new_v4().simple().to_string(),
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        class,
        headers: Headers {
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            content_disposition: input.content_disposition,
            content_language: input.content_language,
            cache_control: input.cache_control,
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
        },
        initiated: Timestamp::now(),
        parts: BTreeMap::new(),
    };
    let mut index = store.index();
    index.bucket(&input.bucket)?;
    store.save_upload(&upload)?;
    let output = dto::CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload.id.clone()),
        checksum_algorithm: input.checksum_algorithm,
        ..Default::default()
    };
    index.uploads.insert(upload.id.clone(), upload);
    Ok(output)
}

pub(super) async fn upload_part(
    store: &Store,
    req: S3Request<dto::UploadPartInput>,
) -> S3Result<dto::UploadPartOutput> {
    let input = req.input;
    if !PART_NUMBERS.contains(&input.part_number) {
        return Err(s3_error!(InvalidArgument, "Part numbers lie between 1 and 10000"));
    }
    store.index().upload(&input.bucket, &input.key, &input.upload_id)?;
    let claims = Claims {
        headers: &req.headers,
        trailers: req.trailing_headers.as_ref(),
        content_length: input.content_length,
    };
    let received = blob::receive(&store.blobs(), input.body, &claims).await?;
    let sums = received.checksums;
    let mut index = store.index();
    // Gone if the upload was aborted meanwhile; the received bytes go with it.
    let upload = index.upload(&input.bucket, &input.key, &input.upload_id)?;
    let part = Part {
        segment: received.blob.keep(received.size),
        md5: received.md5,
        checksums: sums.clone(),
        modified: Timestamp::now(),
    };
    if let Some(old) = upload.parts.insert(input.part_number, part) {
        store.remove_blobs([&old.segment]);
    }
    store.save_upload(upload)?;
    Ok(dto::UploadPartOutput {
        e_tag: Some(etag(&hex(&received.md5))),
        checksum_crc32: sums.get("crc32").cloned(),
        checksum_crc32c: sums.get("crc32c").cloned(),
        checksum_crc64nvme: sums.get("crc64nvme").cloned(),
        checksum_sha1: sums.get("sha1").cloned(),
        checksum_sha256: sums.get("sha256").cloned(),
        ..Default::default()
    })
}

pub(super) fn complete(
    store: &Store,
    input: dto::CompleteMultipartUploadInput,
) -> S3Result<dto::CompleteMultipartUploadOutput> {
    let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "At least one part is needed"));
    }
    let mut index = store.index();
    let upload = index.upload(&input.bucket, &input.key, &input.upload_id)?.clone();
    let parts = checked_parts(&upload, &named)?;
    let size = parts.iter().map(|part| part.segment.size).sum();
    if input.mpu_object_size.is_some_and(|announced| length(size) != Some(announced)) {
        return Err(s3_error!(InvalidRequest, "The object does not have the announced size"));
    }
    let (matches, none) = (input.if_match.as_ref(), input.if_none_match.as_ref());
    check_write(&mut index, &input.bucket, &input.key, matches, none)?;

    let mut md5 = Md5::new();
    for part in &parts {
        md5.update(&part.md5);
    }
    let object = Object {
        key: upload.key.clone(),
        size,
        etag: format!("{}-{}", hex(&md5.finalize()), parts.len()),
        class: upload.class.clone(),
        modified: Timestamp::now(),
        headers: upload.headers.clone(),
        checksums: BTreeMap::new(),
        segments: parts.iter().map(|part| part.segment.clone()).collect(),
        multipart: true,
        restoration: None,
    };
    let output = dto::CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket.clone()),
        key: Some(input.key),
        e_tag: Some(etag(&object.etag)),
        ..Default::default()
    };
    store.take_upload(&mut index, &upload.id)?;
    let taken: Vec<i32> = named.iter().filter_map(|part| part.part_number).collect();
    let unused = upload.parts.iter().filter(|(number, _)| !taken.contains(number));
    store.remove_blobs(unused.map(|(_, part)| &part.segment));
    store.insert_into(&mut index, &input.bucket, object)?;
    Ok(output)
}

/// The parts that a client names, in its order, if each is as it says.
fn checked_parts<'a>(upload: &'a Upload, named: &[dto::CompletedPart]) -> S3Result<Vec<&'a Part>> {
    let mut parts = Vec::with_capacity(named.len());
    let mut previous = 0;
    for name in named {
        let number = name.part_number.ok_or_else(|| s3_error!(MalformedXML, "A part lacks its number"))?;
        if number <= previous {
            return Err(s3_error!(InvalidPartOrder, "The parts are not in ascending order"));
        }
        previous = number;
        let part = upload.parts.get(&number).filter(|part| {
            let sums = [
                ("crc32", &name.checksum_crc32),
                ("crc32c", &name.checksum_crc32c),
                ("crc64nvme", &name.checksum_crc64nvme),
                ("sha1", &name.checksum_sha1),
                ("sha256", &name.checksum_sha256),
            ];
            name.e_tag.as_ref().is_some_and(|etag| etag.value() == hex(&part.md5))
                && sums.iter().all(|(name, sum)| sum.is_none() || part.checksums.get(*name) == sum.as_ref())
        });
        let part = part.ok_or_else(|| s3_error!(InvalidPart, "Part {number} is absent or another one"))?;
        parts.push(part);
    }
    let full = parts.split_last().map(|(_, full)| full).unwrap_or_default();
    if full.iter().any(|part| part.segment.size < SMALLEST_PART) {
        return Err(s3_error!(EntityTooSmall, "A part before the last is smaller than the minimum"));
    }
    Ok(parts)
}

pub(super) fn abort(
    store: &Store,
    input: &dto::AbortMultipartUploadInput,
) -> S3Result<dto::AbortMultipartUploadOutput> {
    let mut index = store.index();
    index.upload(&input.bucket, &input.key, &input.upload_id)?;
    if let Some(upload) = store.take_upload(&mut index, &input.upload_id)? {
        store.remove_blobs(upload.parts.values().map(|part| &part.segment));
    }
    Ok(dto::AbortMultipartUploadOutput::default())
}

pub(super) fn list_parts(store: &Store, input: dto::ListPartsInput) -> S3Result<dto::ListPartsOutput> {
    let mut index = store.index();
    let upload = index.upload(&input.bucket, &input.key, &input.upload_id)?;
    let after = input.part_number_marker.unwrap_or(0);
    let max = input.max_parts.unwrap_or(PAGE).clamp(0, PAGE);
    let mut rest = upload.parts.range(after.saturating_add(1)..).peekable();
    let mut parts = Vec::new();
    let mut last = after;
    while parts.len() < usize::try_from(max).unwrap_or(0) {
        let Some((number, part)) = rest.next() else { break };
        last = *number;
        parts.push(dto::Part {
            part_number: Some(*number),
            e_tag: Some(etag(&hex(&part.md5))),
            size: length(part.segment.size),
            last_modified: Some(timestamp(part.modified)),
            checksum_crc32: part.checksums.get("crc32").cloned(),
            checksum_crc32c: part.checksums.get("crc32c").cloned(),
            checksum_crc64nvme: part.checksums.get("crc64nvme").cloned(),
            checksum_sha1: part.checksums.get("sha1").cloned(),
            checksum_sha256: part.checksums.get("sha256").cloned(),
        });
    }
    let is_truncated = rest.peek().is_some();
    Ok(dto::ListPartsOutput {
        parts: Some(parts),
        is_truncated: Some(is_truncated),
        next_part_number_marker: is_truncated.then_some(last),
        part_number_marker: input.part_number_marker,
        max_parts: Some(max),
        storage_class: Some(dto::StorageClass::from(upload.class.clone())),
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        ..Default::default()
    })
}

pub(super) fn list_uploads(
    store: &Store,
    input: dto::ListMultipartUploadsInput,
) -> S3Result<dto::ListMultipartUploadsOutput> {
    if input.delimiter.is_some() {
        return Err(s3_error!(NotImplemented, "Uploads are not grouped by a delimiter"));
    }
    let encoding = input.encoding_type.as_ref().map(dto::EncodingType::as_str);
    let prefix = input.prefix.clone().unwrap_or_default();
    let index = store.index();
    index.bucket(&input.bucket)?;
    let mut found: Vec<&Upload> = index
        .uploads
        .values()
        .filter(|upload| upload.bucket == input.bucket && upload.key.starts_with(&prefix))
        .collect();
    found.sort_by_key(|upload| (&upload.key, upload.initiated, &upload.id));
    if let Some(key) = &input.key_marker {
        let seen = input.upload_id_marker.as_ref();
        let resume =
            seen.and_then(|id| found.iter().position(|upload| upload.key == *key && upload.id == *id));
        let skip = resume.map_or_else(|| found.partition_point(|upload| upload.key <= *key), |at| at + 1);
        found.drain(..skip);
    }
    let max = input.max_uploads.unwrap_or(PAGE).clamp(0, PAGE);
    let is_truncated = found.len() > usize::try_from(max).unwrap_or(0);
    found.truncate(usize::try_from(max).unwrap_or(0));
    let last = found.last().filter(|_| is_truncated);
    Ok(dto::ListMultipartUploadsOutput {
        next_key_marker: last.map(|upload| encoded(&upload.key, encoding)),
        next_upload_id_marker: last.map(|upload| upload.id.clone()),
        uploads: Some(found.iter().map(|upload| listed(upload, encoding)).collect()),
        is_truncated: Some(is_truncated),
        max_uploads: Some(max),
        prefix: Some(encoded(&prefix, encoding)),
        key_marker: Some(encoded(input.key_marker.as_deref().unwrap_or_default(), encoding)),
        upload_id_marker: input.upload_id_marker.clone(),
        encoding_type: input.encoding_type.clone(),
        bucket: Some(input.bucket),
        ..Default::default()
    })
}

fn listed(upload: &Upload, encoding: Option<&str>) -> dto::MultipartUpload {
    dto::MultipartUpload {
        key: Some(encoded(&upload.key, encoding)),
        upload_id: Some(upload.id.clone()),
        initiated: Some(timestamp(upload.initiated)),
        storage_class: Some(dto::StorageClass::from(upload.class.clone())),
        ..Default::default()
    }
}
