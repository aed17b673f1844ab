//! From the SDK's errors to the domain's.

use archiver::{BucketName, ObjectAddress, StoreError};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// Codes that say "not now" whatever the status.
const TRANSIENT_CODES: [&str; 6] = [
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "OperationAborted",
];

/// What a call was about.
pub(crate) enum Target<'a> {
    Bucket(&'a BucketName),
    Object(&'a ObjectAddress),
}

impl Target<'_> {
    fn name(&self) -> String {
        match self {
            Self::Bucket(bucket) => bucket.to_string(),
            Self::Object(address) => address.to_string(),
        }
    }

    fn bucket(&self) -> &BucketName {
        match self {
            Self::Bucket(bucket) => bucket,
            Self::Object(address) => &address.bucket,
        }
    }
}

/// Says in the domain's words why `action` on `target` failed.
pub(crate) fn translate<E>(
    action: &'static str,
    target: &Target<'_>,
    error: SdkError<E, HttpResponse>,
) -> StoreError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let SdkError::ServiceError(answer) = &error else {
        return match error {
            SdkError::ConstructionFailure(_) => StoreError::Refused {
                action,
                target: target.name(),
                code: "InvalidRequest".to_owned(),
                source: error.into(),
            },
            _ => StoreError::Unavailable { action, target: target.name(), source: error.into() },
        };
    };
    let status = answer.raw().status().as_u16();
    let code = answer.err().code().unwrap_or_default().to_owned();
    match (code.as_str(), status, target) {
        ("NoSuchBucket", _, _) => StoreError::NoSuchBucket { bucket: target.bucket().clone() },
        ("NoSuchKey" | "NoSuchUpload" | "NotFound", _, Target::Object(address))
        | (_, 404, Target::Object(address)) => StoreError::NotFound { action, address: (*address).clone() },
        ("PreconditionFailed", _, Target::Object(address)) | (_, 412, Target::Object(address)) => {
            StoreError::Changed { address: (*address).clone() }
        }
        ("InvalidObjectState", _, Target::Object(address)) => {
            StoreError::Offline { address: (*address).clone() }
        }
        (code, status, _) if status >= 500 || status == 429 || TRANSIENT_CODES.contains(&code) => {
            StoreError::Unavailable { action, target: target.name(), source: error.into() }
        }
        _ => {
            let code = if code.is_empty() { format!("status {status}") } else { code };
            StoreError::Refused { action, target: target.name(), code, source: error.into() }
        }
    }
}

/// An answer without what every such answer has.
pub(crate) fn incomplete(action: &'static str, target: &Target<'_>, missing: &'static str) -> StoreError {
    StoreError::Refused {
        action,
        target: target.name(),
        code: "incomplete answer".to_owned(),
        source: format!("the answer has no usable {missing}").into(),
    }
}
