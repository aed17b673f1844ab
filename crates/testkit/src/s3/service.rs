//! The operations of the protocol on buckets and objects.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use s3s::dto;
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::blob::{self, Claims, hex};
use super::gate::StatusOverride;
use super::listing::{encoded, page};
use super::multipart;
use super::object::{Headers, Object, Restored, STANDARD, checked_class};
use super::store::{Index, Store};

/// The protocol's face of a [`Store`].
#[derive(Debug)]
pub(super) struct Service {
    pub store: Arc<Store>,
}

impl Service {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// An object's description as it is now, if its bytes may be read under the given conditions.
    fn readable(&self, input: &dto::GetObjectInput) -> S3Result<Object> {
        let mut index = self.store.index();
        let object = index.object(&input.bucket, &input.key)?;
        check_read(object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        if !object.is_readable(Timestamp::now()) {
            return Err(s3_error!(
                InvalidObjectState,
                "The operation is not valid for the object's storage class"
            ));
        }
        Ok(object.clone())
    }
}

fn check_read(
    object: &Object,
    matches: Option<&dto::IfMatch>,
    none: Option<&dto::IfNoneMatch>,
) -> S3Result<()> {
    let is = |condition: &dto::ETagCondition| {
        condition.is_any() || condition.as_etag().is_some_and(|etag| etag.value() == object.etag)
    };
    if matches.is_some_and(|condition| !is(condition)) {
        return Err(s3_error!(PreconditionFailed, "The ETag of the object is another one"));
    }
    if none.is_some_and(is) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// Checks the conditions of a write against the object that is there, or not.
pub(super) fn check_write(
    index: &mut Index,
    bucket: &str,
    key: &str,
    matches: Option<&dto::IfMatch>,
    none: Option<&dto::IfNoneMatch>,
) -> S3Result<()> {
    let present = index.object(bucket, key).ok();
    if none.is_some() && present.is_some() {
        return Err(s3_error!(PreconditionFailed, "The object exists already"));
    }
    match (matches, present) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(s3_error!(NoSuchKey, "The object does not exist")),
        (Some(condition), Some(object)) => check_read(object, Some(condition), None),
    }
}

/// The bytes that a request asks for, and whether they are a part only.
fn wanted(
    object: &Object,
    range: Option<dto::Range>,
    part: Option<i32>,
) -> S3Result<(Range<u64>, bool, Option<i32>)> {
    let count = object.multipart.then(|| i32::try_from(object.segments.len()).unwrap_or(i32::MAX));
    match (range, part) {
        (Some(_), Some(_)) => Err(s3_error!(InvalidRequest, "Range and partNumber exclude each other")),
        (Some(range), None) => Ok((range.check(object.size)?, true, count)),
        (None, None) => Ok((0..object.size, false, None)),
        (None, Some(number)) => {
            let position = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            let segment = position.and_then(|position| object.segments.get(position).map(|s| (position, s)));
            let Some((position, segment)) = segment else {
                return Err(s3_error!(InvalidRange, "The object has no part {number}"));
            };
            let start = object.segments.iter().take(position).map(|segment| segment.size).sum::<u64>();
            Ok((start..start + segment.size, true, count))
        }
    }
}

/// A length as the protocol writes it.
pub(super) fn length(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

pub(super) fn timestamp(time: Timestamp) -> dto::Timestamp {
    std::time::SystemTime::from(time).into()
}

pub(super) fn etag(value: &str) -> dto::ETag {
    dto::ETag::Strong(value.to_owned())
}

fn sum(checksums: &BTreeMap<String, String>, algorithm: &str) -> Option<String> {
    checksums.get(algorithm).cloned()
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))
}

fn metadata(headers: &Headers) -> Option<dto::Metadata> {
    (!headers.metadata.is_empty()).then(|| headers.metadata.clone().into_iter().collect())
}

/// The class as `HEAD` and `GET` tell it: not at all when it is the standard one.
fn shown_class(object: &Object) -> Option<dto::StorageClass> {
    (object.class != STANDARD).then(|| dto::StorageClass::from(object.class.clone()))
}

fn listed(object: &Object, encoding: Option<&str>) -> dto::Object {
    dto::Object {
        key: Some(encoded(&object.key, encoding)),
        e_tag: Some(etag(&object.etag)),
        size: length(object.size),
        last_modified: Some(timestamp(object.modified)),
        storage_class: Some(dto::ObjectStorageClass::from(object.class.clone())),
        ..Default::default()
    }
}

fn common_prefixes(prefixes: Vec<String>, encoding: Option<&str>) -> Option<Vec<dto::CommonPrefix>> {
    let cut = |prefix: String| dto::CommonPrefix { prefix: Some(encoded(&prefix, encoding)) };
    (!prefixes.is_empty()).then(|| prefixes.into_iter().map(cut).collect())
}

fn count(entries: usize) -> Option<i32> {
    i32::try_from(entries).ok()
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(
        &self,
        req: S3Request<dto::CreateBucketInput>,
    ) -> S3Result<S3Response<dto::CreateBucketOutput>> {
        let bucket = req.input.bucket;
        if self.store.index().buckets.contains_key(&bucket) {
            return Err(s3_error!(BucketAlreadyOwnedByYou, "The bucket {bucket} exists"));
        }
        self.store.create_bucket(&bucket).map_err(|error| s3_error!(InvalidBucketName, "{error}"))?;
        let output = dto::CreateBucketOutput { location: Some(format!("/{bucket}")) };
        Ok(S3Response::new(output))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<dto::DeleteBucketInput>,
    ) -> S3Result<S3Response<dto::DeleteBucketOutput>> {
        let mut index = self.store.index();
        if !index.bucket(&req.input.bucket)?.is_empty() {
            return Err(s3_error!(BucketNotEmpty, "The bucket is not empty"));
        }
        std::fs::remove_dir(self.store.bucket_dir(&req.input.bucket)).map_err(S3Error::internal_error)?;
        index.buckets.remove(&req.input.bucket);
        Ok(S3Response::with_status(dto::DeleteBucketOutput::default(), StatusCode::NO_CONTENT))
    }

    async fn head_bucket(
        &self,
        req: S3Request<dto::HeadBucketInput>,
    ) -> S3Result<S3Response<dto::HeadBucketOutput>> {
        self.store.index().bucket(&req.input.bucket)?;
        Ok(S3Response::new(dto::HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<dto::GetBucketLocationInput>,
    ) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
        self.store.index().bucket(&req.input.bucket)?;
        Ok(S3Response::new(dto::GetBucketLocationOutput::default()))
    }

    async fn list_buckets(
        &self,
        _req: S3Request<dto::ListBucketsInput>,
    ) -> S3Result<S3Response<dto::ListBucketsOutput>> {
        let buckets = self.store.index().buckets.keys().cloned().collect::<Vec<_>>();
        let buckets = buckets.into_iter().map(|name| dto::Bucket { name: Some(name), ..Default::default() });
        Ok(S3Response::new(dto::ListBucketsOutput { buckets: Some(buckets.collect()), ..Default::default() }))
    }

    async fn put_object(
        &self,
        req: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        let input = req.input;
        let class = checked_class(input.storage_class.as_ref().map(dto::StorageClass::as_str))?;
        let (if_match, if_none_match) = (input.if_match, input.if_none_match);
        // Checked before the bytes to spare them, and after, since another writer may have been faster.
        {
            let mut index = self.store.index();
            index.bucket(&input.bucket)?;
            check_write(&mut index, &input.bucket, &input.key, if_match.as_ref(), if_none_match.as_ref())?;
        }
        let claims = Claims {
            headers: &req.headers,
            trailers: req.trailing_headers.as_ref(),
            content_length: input.content_length,
        };
        let received = blob::receive(&self.store.blobs(), input.body, &claims).await?;
        let checksums = received.checksums;
        let mut index = self.store.index();
        check_write(&mut index, &input.bucket, &input.key, if_match.as_ref(), if_none_match.as_ref())?;
        let object = Object {
            key: input.key,
            size: received.size,
            etag: hex(&received.md5),
            class,
            modified: Timestamp::now(),
            headers: Headers {
                content_type: input.content_type,
                content_encoding: input.content_encoding,
                content_disposition: input.content_disposition,
                content_language: input.content_language,
                cache_control: input.cache_control,
                metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            },
            checksums: checksums.clone(),
            segments: vec![received.blob.keep(received.size)],
            multipart: false,
            restoration: None,
        };
        let output = dto::PutObjectOutput {
            e_tag: Some(etag(&object.etag)),
            checksum_crc32: sum(&checksums, "crc32"),
            checksum_crc32c: sum(&checksums, "crc32c"),
            checksum_crc64nvme: sum(&checksums, "crc64nvme"),
            checksum_sha1: sum(&checksums, "sha1"),
            checksum_sha256: sum(&checksums, "sha256"),
            ..Default::default()
        };
        self.store.insert_into(&mut index, &input.bucket, object)?;
        Ok(S3Response::new(output))
    }

    async fn get_object(
        &self,
        req: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let input = req.input;
        let object = self.readable(&input)?;
        let (range, partial, parts_count) = wanted(&object, input.range, input.part_number)?;
        let sums = if partial { BTreeMap::new() } else { object.checksums.clone() };
        let output = dto::GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: length(range.end - range.start),
            content_range: partial.then(|| content_range(&range, object.size)),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(timestamp(object.modified)),
            storage_class: shown_class(&object),
            restore: object.restore_header(),
            parts_count: input.part_number.and(parts_count),
            metadata: metadata(&object.headers),
            content_type: input.response_content_type.or(object.headers.content_type),
            content_encoding: input.response_content_encoding.or(object.headers.content_encoding),
            content_disposition: input.response_content_disposition.or(object.headers.content_disposition),
            content_language: input.response_content_language.or(object.headers.content_language),
            cache_control: input.response_cache_control.or(object.headers.cache_control),
            checksum_crc32: sum(&sums, "crc32"),
            checksum_crc32c: sum(&sums, "crc32c"),
            checksum_crc64nvme: sum(&sums, "crc64nvme"),
            checksum_sha1: sum(&sums, "sha1"),
            checksum_sha256: sum(&sums, "sha256"),
            body: Some(blob::send(&self.store.blobs(), object.segments, range)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        req: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        let input = req.input;
        let mut index = self.store.index();
        let object = index.object(&input.bucket, &input.key)?;
        check_read(object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        object.advance(Timestamp::now());
        let restore = object.restore_header();
        object.count_head();
        let (range, partial, parts_count) = wanted(object, input.range, input.part_number)?;
        let sums = if partial { BTreeMap::new() } else { object.checksums.clone() };
        let output = dto::HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: length(range.end - range.start),
            content_range: partial.then(|| content_range(&range, object.size)),
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(timestamp(object.modified)),
            storage_class: shown_class(object),
            restore,
            parts_count: input.part_number.and(parts_count),
            metadata: metadata(&object.headers),
            content_type: object.headers.content_type.clone(),
            content_encoding: object.headers.content_encoding.clone(),
            content_disposition: object.headers.content_disposition.clone(),
            content_language: object.headers.content_language.clone(),
            cache_control: object.headers.cache_control.clone(),
            checksum_crc32: sum(&sums, "crc32"),
            checksum_crc32c: sum(&sums, "crc32c"),
            checksum_crc64nvme: sum(&sums, "crc64nvme"),
            checksum_sha1: sum(&sums, "sha1"),
            checksum_sha256: sum(&sums, "sha256"),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn restore_object(
        &self,
        req: S3Request<dto::RestoreObjectInput>,
    ) -> S3Result<S3Response<dto::RestoreObjectOutput>> {
        let input = req.input;
        let request =
            input.restore_request.ok_or_else(|| s3_error!(MalformedXML, "A RestoreRequest is needed"))?;
        let days = request.days.filter(|days| *days >= 1);
        let days = days.ok_or_else(|| s3_error!(MalformedXML, "Days must be a positive number"))?;
        let delay = self.store.restore_delay();
        let mut index = self.store.index();
        let object = index.object(&input.bucket, &input.key)?;
        let tier = request.glacier_job_parameters.map(|parameters| parameters.tier).or(request.tier);
        if object.class == "DEEP_ARCHIVE" && tier.is_some_and(|tier| tier.as_str() == "Expedited") {
            return Err(s3_error!(InvalidArgument, "DEEP_ARCHIVE has no tier Expedited"));
        }
        let restored = object.restore(days, delay, Timestamp::now())?;
        let object = object.clone();
        self.store.save_object(&input.bucket, &object)?;
        let mut response = S3Response::new(dto::RestoreObjectOutput::default());
        if restored == Restored::Accepted {
            response.extensions.insert(StatusOverride(StatusCode::ACCEPTED));
        }
        Ok(response)
    }

    async fn delete_object(
        &self,
        req: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        let input = req.input;
        let mut index = self.store.index();
        if let (Some(condition), Ok(object)) = (&input.if_match, index.object(&input.bucket, &input.key)) {
            check_read(object, Some(condition), None)?;
        }
        self.store.remove_from(&mut index, &input.bucket, &input.key)?;
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<dto::DeleteObjectsInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
        let input = req.input;
        let mut deleted = Vec::new();
        for object in input.delete.objects {
            self.store.remove(&input.bucket, &object.key)?;
            deleted.push(dto::DeletedObject { key: Some(object.key), ..Default::default() });
        }
        let quiet = input.delete.quiet.unwrap_or(false);
        let deleted = (!quiet).then_some(deleted);
        Ok(S3Response::new(dto::DeleteObjectsOutput { deleted, ..Default::default() }))
    }

    async fn copy_object(
        &self,
        req: S3Request<dto::CopyObjectInput>,
    ) -> S3Result<S3Response<dto::CopyObjectOutput>> {
        let input = req.input;
        let dto::CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "Only buckets can be copied from"));
        };
        let class = checked_class(input.storage_class.as_ref().map(dto::StorageClass::as_str))?;
        let mut source = {
            let mut index = self.store.index();
            let source = index.object(bucket, key)?;
            check_read(source, input.copy_source_if_match.as_ref(), None)?;
            if !source.is_readable(Timestamp::now()) {
                return Err(s3_error!(InvalidObjectState, "The source of the copy is archived"));
            }
            source.clone()
        };
        let claims = Claims { headers: &axum::http::HeaderMap::new(), trailers: None, content_length: None };
        let bytes = blob::send(&self.store.blobs(), std::mem::take(&mut source.segments), 0..source.size);
        let received = blob::receive(&self.store.blobs(), Some(bytes), &claims).await?;
        if input.metadata_directive.as_ref().is_some_and(|directive| directive.as_str() == "REPLACE") {
            source.headers.metadata = input.metadata.unwrap_or_default().into_iter().collect();
            source.headers.content_type = input.content_type;
        }
        let object = Object {
            key: input.key,
            etag: hex(&received.md5),
            class,
            modified: Timestamp::now(),
            segments: vec![received.blob.keep(received.size)],
            multipart: false,
            restoration: None,
            ..source
        };
        let result = dto::CopyObjectResult {
            e_tag: Some(etag(&object.etag)),
            last_modified: Some(timestamp(object.modified)),
            ..Default::default()
        };
        self.store.insert(&input.bucket, object)?;
        let output = dto::CopyObjectOutput { copy_object_result: Some(result), ..Default::default() };
        Ok(S3Response::new(output))
    }

    async fn list_objects(
        &self,
        req: S3Request<dto::ListObjectsInput>,
    ) -> S3Result<S3Response<dto::ListObjectsOutput>> {
        let input = req.input;
        let encoding = input.encoding_type.as_ref().map(dto::EncodingType::as_str);
        let prefix = input.prefix.unwrap_or_default();
        let index = self.store.index();
        let objects = index.bucket(&input.bucket)?;
        let page =
            page(objects, &prefix, input.delimiter.as_deref(), input.marker.as_deref(), input.max_keys);
        let output = dto::ListObjectsOutput {
            contents: Some(page.entries.iter().map(|object| listed(object, encoding)).collect()),
            common_prefixes: common_prefixes(page.prefixes, encoding),
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.map(|next| encoded(&next, encoding)),
            prefix: Some(encoded(&prefix, encoding)),
            marker: Some(encoded(input.marker.as_deref().unwrap_or_default(), encoding)),
            delimiter: input.delimiter.map(|delimiter| encoded(&delimiter, encoding)),
            max_keys: Some(input.max_keys.unwrap_or(1000)),
            encoding_type: input.encoding_type.clone(),
            name: Some(input.bucket),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        let input = req.input;
        let encoding = input.encoding_type.as_ref().map(dto::EncodingType::as_str);
        let prefix = input.prefix.unwrap_or_default();
        let after = match &input.continuation_token {
            None => input.start_after.clone(),
            Some(token) => {
                let key =
                    BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|key| String::from_utf8(key).ok());
                Some(key.ok_or_else(|| s3_error!(InvalidArgument, "The continuation token is not valid"))?)
            }
        };
        let index = self.store.index();
        let objects = index.bucket(&input.bucket)?;
        let page = page(objects, &prefix, input.delimiter.as_deref(), after.as_deref(), input.max_keys);
        let output = dto::ListObjectsV2Output {
            key_count: count(page.entries.len() + page.prefixes.len()),
            contents: Some(page.entries.iter().map(|object| listed(object, encoding)).collect()),
            common_prefixes: common_prefixes(page.prefixes, encoding),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|next| BASE64_URL_SAFE_NO_PAD.encode(next)),
            continuation_token: input.continuation_token,
            prefix: Some(encoded(&prefix, encoding)),
            start_after: input.start_after.as_deref().map(|key| encoded(key, encoding)),
            delimiter: input.delimiter.map(|delimiter| encoded(&delimiter, encoding)),
            max_keys: Some(input.max_keys.unwrap_or(1000)),
            encoding_type: input.encoding_type.clone(),
            name: Some(input.bucket),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<dto::CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
        multipart::create(&self.store, req).map(S3Response::new)
    }

    async fn upload_part(
        &self,
        req: S3Request<dto::UploadPartInput>,
    ) -> S3Result<S3Response<dto::UploadPartOutput>> {
        multipart::upload_part(&self.store, req).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
        multipart::complete(&self.store, req.input).map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<dto::AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
        multipart::abort(&self.store, &req.input).map(S3Response::new)
    }

    async fn list_parts(
        &self,
        req: S3Request<dto::ListPartsInput>,
    ) -> S3Result<S3Response<dto::ListPartsOutput>> {
        multipart::list_parts(&self.store, req.input).map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<dto::ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<dto::ListMultipartUploadsOutput>> {
        multipart::list_uploads(&self.store, req.input).map(S3Response::new)
    }
}
