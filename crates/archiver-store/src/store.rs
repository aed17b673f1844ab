//! The S3 adapter.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use archiver::{
    BucketName, DeletionPermit, ETag, ListPage, ListedObject, Md5Digest, ObjectAddress, ObjectInfo,
    ObjectKey, ObjectStore, OpenObject, PageToken, PartNumber, PresignedUrl, RestoreState, StorageClass,
    StoreError, StoredPart, UploadId,
};
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, EncodingType, GlacierJobParameters, RestoreRequest,
    StorageClass as SdkClass, Tier,
};
use aws_smithy_types::base64;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret as _;

use crate::error::{Target, incomplete, translate};
use crate::settings::endpoint_url;
use crate::{S3Settings, S3SettingsError};

/// How often a call is made before its error is told.
const ATTEMPTS: u32 = 4;

/// How long a connection may take to establish.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long an attempt without a large body may take.
const CALL_DEADLINE: Duration = Duration::from_mins(1);

/// How long an attempt may take that sends a part, or has the server assemble an object.
const TRANSFER_DEADLINE: Duration = Duration::from_mins(15);

/// Longest validity of a presigned link (a limit of the signature).
const MAX_LINK_VALIDITY: Duration = Duration::from_hours(7 * 24);

/// An object store with the S3 protocol.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    /// Signs links for the address under which users reach the store; never connects.
    public: Client,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Store")
    }
}

impl S3Store {
    /// A store at the endpoint of `settings`. Does not connect. Servers' certificates are checked against the
    /// system's certificate authorities, or those in the file that `SSL_CERT_FILE` names.
    pub fn new(settings: &S3Settings) -> Result<Self, S3SettingsError> {
        let endpoint = endpoint_url(&settings.endpoint)?;
        let external = match &settings.external_endpoint {
            Some(external) => endpoint_url(external)?,
            None => endpoint.clone(),
        };
        if settings.region.trim().is_empty() {
            return Err(S3SettingsError::Empty { what: "region" });
        }
        let (access, secret) = (settings.access_key.expose_secret(), settings.secret_key.expose_secret());
        if access.is_empty() || secret.is_empty() {
            return Err(S3SettingsError::Empty { what: "access key or secret key" });
        }
        let credentials = Credentials::new(access, secret, None, None, "settings");
        let client = |endpoint: String| {
            let config = Builder::new()
                .behavior_version(BehaviorVersion::v2026_01_12())
                .region(Region::new(settings.region.trim().to_owned()))
                .endpoint_url(endpoint)
                .force_path_style(true)
                .credentials_provider(credentials.clone())
                // Servers other than AWS's may refuse checksum trailers; we send Content-MD5.
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
                // Tape-backed stores stall for good reasons; readers have a deadline of their own per chunk.
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
                .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
                .timeout_config(deadlines(CALL_DEADLINE))
                .build();
            Client::from_conf(config)
        };
        Ok(Self { client: client(endpoint), public: client(external) })
    }
}

fn deadlines(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_DEADLINE)
        .read_timeout(attempt)
        .operation_attempt_timeout(attempt)
        .build()
}

/// Gives a call the time that a large body takes.
fn patient() -> Builder {
    Builder::new().timeout_config(deadlines(TRANSFER_DEADLINE))
}

fn sdk_class(class: Option<&StorageClass>) -> Option<SdkClass> {
    class.map(|class| SdkClass::from(class.as_str()))
}

fn content_md5(md5: Md5Digest) -> String {
    base64::encode(md5.as_bytes())
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn list(
        &self,
        bucket: &BucketName,
        prefix: &str,
        page: Option<&PageToken>,
    ) -> Result<ListPage, StoreError> {
        let (action, target) = ("list", Target::Bucket(bucket));
        let reply = self
            .client
            .list_objects_v2()
            .bucket(bucket.as_str())
            .prefix(prefix)
            // XML cannot carry every character of a key.
            .encoding_type(EncodingType::Url)
            .set_continuation_token(page.map(|token| token.0.clone()))
            .send()
            .await
            .map_err(|error| translate(action, &target, error))?;
        // Some stores do not encode, and do not say so either.
        let encoded = reply.encoding_type() == Some(&EncodingType::Url);
        let mut objects = Vec::with_capacity(reply.contents().len());
        for object in reply.contents() {
            objects.push(ListedObject {
                key: object
                    .key()
                    .and_then(|key| if encoded { decoded(key) } else { Some(key.to_owned()) })
                    .map(ObjectKey::new)
                    .ok_or_else(|| incomplete(action, &target, "key"))?,
                size: size(object.size()).ok_or_else(|| incomplete(action, &target, "size"))?,
                etag: object.e_tag().map(ETag::new),
                last_modified: object
                    .last_modified()
                    .and_then(timestamp)
                    .ok_or_else(|| incomplete(action, &target, "time"))?,
                storage_class: object.storage_class().map(|class| StorageClass::new(class.as_str())),
            });
        }
        let next = match (reply.is_truncated(), reply.next_continuation_token()) {
            (Some(true), Some(token)) => Some(PageToken(token.to_owned())),
            (Some(true), None) => return Err(incomplete(action, &target, "continuation token")),
            _ => None,
        };
        Ok(ListPage { objects, next })
    }

    async fn head(&self, address: &ObjectAddress) -> Result<Option<ObjectInfo>, StoreError> {
        let (action, target) = ("look up", Target::Object(address));
        let sent =
            self.client.head_object().bucket(address.bucket.as_str()).key(address.key.as_str()).send().await;
        let reply = match sent.map_err(|error| translate(action, &target, error)) {
            Ok(reply) => reply,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let class = reply.storage_class().map(|class| StorageClass::new(class.as_str()));
        Ok(Some(ObjectInfo {
            size: size(reply.content_length()).ok_or_else(|| incomplete(action, &target, "size"))?,
            etag: reply.e_tag().map(ETag::new).ok_or_else(|| incomplete(action, &target, "ETag"))?,
            restore: RestoreState::from_headers(class.as_ref(), reply.restore()),
        }))
    }

    async fn get(
        &self,
        address: &ObjectAddress,
        pin: Option<&ETag>,
        offset: u64,
    ) -> Result<OpenObject, StoreError> {
        let (action, target) = ("read", Target::Object(address));
        let reply = self
            .client
            .get_object()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .set_if_match(pin.map(ETag::quoted))
            .set_range((offset > 0).then(|| format!("bytes={offset}-")))
            .send()
            .await
            .map_err(|error| translate(action, &target, error))?;
        let whole = match (offset, reply.content_range()) {
            (0, _) => size(reply.content_length()),
            (_, Some(range)) => whole_size(range, offset),
            (_, None) => None,
        };
        let (size, etag) = (
            whole.ok_or_else(|| incomplete(action, &target, "size or range"))?,
            reply.e_tag().map(ETag::new).ok_or_else(|| incomplete(action, &target, "ETag"))?,
        );
        let name = address.to_string();
        let body = stream::unfold((reply.body, name), |(mut body, name)| async {
            let next = body.next().await?;
            let chunk = next.map_err(|error| StoreError::Unavailable {
                action: "read",
                target: name.clone(),
                source: error.into(),
            });
            Some((chunk, (body, name)))
        });
        Ok(OpenObject { etag, size, body: body.boxed() })
    }

    async fn put(
        &self,
        address: &ObjectAddress,
        body: Bytes,
        md5: Md5Digest,
        class: Option<&StorageClass>,
    ) -> Result<ETag, StoreError> {
        let (action, target) = ("store", Target::Object(address));
        let reply = self
            .client
            .put_object()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .content_md5(content_md5(md5))
            .set_storage_class(sdk_class(class))
            .body(ByteStream::from(body))
            .customize()
            .config_override(patient())
            .send()
            .await
            .map_err(|error| translate(action, &target, error))?;
        reply.e_tag().map(ETag::new).ok_or_else(|| incomplete(action, &target, "ETag"))
    }

    async fn create_upload(
        &self,
        address: &ObjectAddress,
        class: Option<&StorageClass>,
    ) -> Result<UploadId, StoreError> {
        let (action, target) = ("begin an upload of", Target::Object(address));
        let reply = self
            .client
            .create_multipart_upload()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .set_storage_class(sdk_class(class))
            .send()
            .await
            .map_err(|error| translate(action, &target, error))?;
        let id = reply.upload_id().ok_or_else(|| incomplete(action, &target, "upload id"))?;
        Ok(UploadId(id.to_owned()))
    }

    async fn upload_part(
        &self,
        address: &ObjectAddress,
        upload: &UploadId,
        number: PartNumber,
        body: Bytes,
        md5: Md5Digest,
    ) -> Result<ETag, StoreError> {
        let (action, target) = ("store a part of", Target::Object(address));
        let reply = self
            .client
            .upload_part()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .upload_id(&upload.0)
            .part_number(i32::from(number.get()))
            .content_md5(content_md5(md5))
            .body(ByteStream::from(body))
            .customize()
            .config_override(patient())
            .send()
            .await
            .map_err(|error| translate(action, &target, error))?;
        reply.e_tag().map(ETag::new).ok_or_else(|| incomplete(action, &target, "ETag"))
    }

    async fn complete_upload(
        &self,
        address: &ObjectAddress,
        upload: &UploadId,
        parts: &[StoredPart],
    ) -> Result<ETag, StoreError> {
        let (action, target) = ("assemble", Target::Object(address));
        let part = |part: &StoredPart| {
            CompletedPart::builder()
                .part_number(i32::from(part.number.get()))
                .e_tag(part.etag.quoted())
                .build()
        };
        let assembled =
            CompletedMultipartUpload::builder().set_parts(Some(parts.iter().map(part).collect())).build();
        let reply = self
            .client
            .complete_multipart_upload()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .upload_id(&upload.0)
            .multipart_upload(assembled)
            .customize()
            .config_override(patient())
            .send()
            .await
            .map_err(|error| translate(action, &target, error))?;
        reply.e_tag().map(ETag::new).ok_or_else(|| incomplete(action, &target, "ETag"))
    }

    async fn abort_upload(&self, address: &ObjectAddress, upload: &UploadId) -> Result<(), StoreError> {
        let sent = self
            .client
            .abort_multipart_upload()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .upload_id(&upload.0)
            .send()
            .await;
        match sent.map_err(|error| translate("abort an upload of", &Target::Object(address), error)) {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, permit: &DeletionPermit) -> Result<(), StoreError> {
        let address = permit.address();
        let delete = |tag: Option<&ETag>| {
            self.client
                .delete_object()
                .bucket(address.bucket.as_str())
                .key(address.key.as_str())
                .set_if_match(tag.map(ETag::quoted))
                .send()
        };
        let sent = match delete(permit.tag()).await {
            // The condition is a second look; whoever permits the deletion has looked before.
            Err(error) if permit.tag().is_some() && error.code() == Some("NotImplemented") => {
                delete(None).await
            }
            sent => sent,
        };
        match sent.map_err(|error| translate("delete", &Target::Object(address), error)) {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn request_restore(&self, address: &ObjectAddress, days: u32) -> Result<(), StoreError> {
        let ask = |tier| request_restore(&self.client, address, days, tier);
        let answer = match ask(Tier::Expedited).await {
            // Deep archives know no expedited tier, and capacity for it may be exhausted.
            Err(StoreError::Refused { code, .. }) if code == "InvalidArgument" => ask(Tier::Standard).await,
            Err(StoreError::Unavailable { .. }) => ask(Tier::Standard).await,
            answer => answer,
        };
        match answer {
            Err(StoreError::Refused { code, .. }) if code == "RestoreAlreadyInProgress" => Ok(()),
            answer => answer,
        }
    }

    async fn presign_get(
        &self,
        address: &ObjectAddress,
        validity: Duration,
    ) -> Result<PresignedUrl, StoreError> {
        let (action, target) = ("sign a link to", Target::Object(address));
        let refuse = |source| StoreError::Refused {
            action,
            target: address.to_string(),
            code: "InvalidValidity".to_owned(),
            source,
        };
        if validity > MAX_LINK_VALIDITY {
            return Err(refuse("a link can be valid for at most 7 days".into()));
        }
        let config = PresigningConfig::expires_in(validity).map_err(|error| refuse(error.into()))?;
        let request = self
            .public
            .get_object()
            .bucket(address.bucket.as_str())
            .key(address.key.as_str())
            .presigned(config)
            .await
            .map_err(|error| translate(action, &target, error))?;
        Ok(PresignedUrl::new(request.uri()))
    }
}

async fn request_restore(
    client: &Client,
    address: &ObjectAddress,
    days: u32,
    tier: Tier,
) -> Result<(), StoreError> {
    let (action, target) = ("restore", Target::Object(address));
    let tier = GlacierJobParameters::builder()
        .tier(tier)
        .build()
        .map_err(|_| incomplete(action, &target, "retrieval tier"))?;
    let request = RestoreRequest::builder()
        .days(i32::try_from(days).unwrap_or(i32::MAX))
        .glacier_job_parameters(tier)
        .build();
    client
        .restore_object()
        .bucket(address.bucket.as_str())
        .key(address.key.as_str())
        .restore_request(request)
        .send()
        .await
        .map(drop)
        .map_err(|error| translate(action, &target, error))
}

fn size(length: Option<i64>) -> Option<u64> {
    length.and_then(|length| u64::try_from(length).ok())
}

/// A key of a listing with `encoding-type=url`: form encoding, in which a blank is `+`.
fn decoded(key: &str) -> Option<String> {
    percent_decode_str(&key.replace('+', " ")).decode_utf8().ok().map(Cow::into_owned)
}

/// The size of the whole object from the header `bytes {offset}-{last}/{size}`, if it starts at `offset`.
fn whole_size(content_range: &str, offset: u64) -> Option<u64> {
    let (range, size) = content_range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    if first.parse() == Ok(offset) { size.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_servers_encode_them() {
        for (encoded, key) in [("a%2Bb+c%20d/e", "a+b c d/e"), ("%C3%BC%0A", "ü\n"), ("a", "a")] {
            assert_eq!(decoded(encoded).as_deref(), Some(key));
        }
        assert_eq!(decoded("%FF"), None);
    }

    #[test]
    fn ranges_are_believed_only_from_the_offset_asked_for() {
        assert_eq!(whole_size("bytes 10-99/100", 10), Some(100));
        assert_eq!(whole_size("bytes 0-99/100", 10), None);
        assert_eq!(whole_size("bytes 10-99/*", 10), None);
        assert_eq!(whole_size("items 10-99/100", 10), None);
    }
}
