//! A bucket in which each result is an object.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use prefect_flow::{BoxError, ResultStorage, SecretString, StorageFuture};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

/// How often a call is made before its error is told.
const ATTEMPTS: u32 = 4;
/// How long a connection may take to establish.
const CONNECT: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_mins(5);

/// Where a bucket is, and as whom to use it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The bucket's name.
    pub bucket: String,
    /// The folder in the bucket; empty for its root.
    pub folder: String,
    /// URL of the server; Amazon's if none.
    pub endpoint: Option<String>,
    /// Region; servers other than Amazon's usually take any.
    pub region: String,
    /// Access key id.
    pub access_key: SecretString,
    /// Secret access key.
    pub secret_key: SecretString,
    /// Token of temporary credentials.
    pub session_token: Option<SecretString>,
}

/// An object that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The server does not take it.
    #[error("write object '{key}' of bucket '{bucket}'")]
    Write {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
        /// Why.
        source: BoxError,
    },
    /// The server does not give it.
    #[error("read object '{key}' of bucket '{bucket}'")]
    Read {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
        /// Why.
        source: BoxError,
    },
}

/// A bucket, or a folder in it, in which each result is an object. Certificates of servers are checked against the
/// system's authorities, or those in the file that `SSL_CERT_FILE` names.
#[derive(Clone)]
pub struct S3Storage {
    client: Client,
    bucket: String,
    folder: String,
    block: Option<Uuid>,
}

impl fmt::Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Storage")
            .field("bucket", &self.bucket)
            .field("folder", &self.folder)
            .field("block", &self.block)
            .finish_non_exhaustive()
    }
}

impl S3Storage {
    /// A storage with these settings. Does not connect.
    pub fn new(settings: &Settings) -> Self {
        let token = settings.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        let (access, secret) = (settings.access_key.expose_secret(), settings.secret_key.expose_secret());
        let deadlines =
            TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build();
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(settings.region.clone()))
            .credentials_provider(Credentials::new(access, secret, token, None, "settings"))
            // Servers other than Amazon's may refuse checksum trailers.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(deadlines);
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint).force_path_style(true);
        }
        Self {
            client: Client::from_conf(config.build()),
            bucket: settings.bucket.clone(),
            folder: settings.folder.trim_end_matches('/').to_owned(),
            block: None,
        }
    }

    /// The same, as a block of the Prefect server describes it.
    #[must_use]
    pub fn of_block(self, block: Uuid) -> Self {
        Self { block: Some(block), ..self }
    }

    /// The object of a key. A key that is in the folder already stays as it is, as in Python.
    fn object(&self, key: &str) -> String {
        let is_inside = key.strip_prefix(&self.folder).is_some_and(|rest| rest.starts_with('/'));
        if self.folder.is_empty() || is_inside { key.to_owned() } else { format!("{}/{key}", self.folder) }
    }
}

impl ResultStorage for S3Storage {
    fn locate(&self, key: &str) -> String {
        // Whoever knows the block knows the folder.
        if self.block.is_some() { key.to_owned() } else { self.object(key) }
    }

    fn block_id(&self) -> Option<Uuid> {
        self.block
    }

    fn write<'a>(&'a self, key: &'a str, content: Vec<u8>) -> StorageFuture<'a, ()> {
        Box::pin(async move {
            let key = self.object(key);
            let put = self.client.put_object().bucket(&self.bucket).key(&key);
            match put.body(ByteStream::from(content)).send().await {
                Ok(_) => Ok(()),
                Err(error) => {
                    Err(StorageError::Write { bucket: self.bucket.clone(), key, source: error.into() }.into())
                }
            }
        })
    }

    fn read<'a>(&'a self, key: &'a str) -> StorageFuture<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            let key = self.object(key);
            let failed = |source: BoxError| {
                BoxError::from(StorageError::Read { bucket: self.bucket.clone(), key: key.clone(), source })
            };
            let object = match self.client.get_object().bucket(&self.bucket).key(&key).send().await {
                Ok(object) => object,
                Err(error) if error.as_service_error().is_some_and(GetObjectError::is_no_such_key) => {
                    return Ok(None);
                }
                Err(error) => return Err(failed(error.into())),
            };
            let content = object.body.collect().await.map_err(|error| failed(error.into()))?;
            Ok(Some(content.to_vec()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(folder: &str) -> S3Storage {
        S3Storage::new(&Settings {
            bucket: "results".to_owned(),
            folder: folder.to_owned(),
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            region: "us-east-1".to_owned(),
            access_key: SecretString::from("key"),
            secret_key: SecretString::from("hush"),
            session_token: None,
        })
    }

    #[test]
    fn keys_are_in_the_folder() {
        assert_eq!(storage("").object("a/b"), "a/b");
        assert_eq!(storage("flows/").object("a"), "flows/a");
        assert_eq!(storage("flows").object("flows/a"), "flows/a");
        assert_eq!(storage("flows").object("flowsy"), "flows/flowsy");
    }

    #[test]
    fn states_tell_the_key_if_a_block_tells_the_folder() {
        assert_eq!(storage("flows").locate("a"), "flows/a");
        assert_eq!(storage("flows").of_block(Uuid::nil()).locate("a"), "a");
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", storage("flows"));
        assert!(shown.contains("results") && !shown.contains("hush"), "{shown}");
    }
}
