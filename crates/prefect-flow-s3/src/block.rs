//! The block `s3-bucket` of `prefect-aws`, with the credentials that stand in it.

use std::sync::Arc;

use prefect_flow::{BlockDocument, BoxError, ResultStorage, SecretString, StorageBlock};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::storage::{S3Storage, Settings};

/// Blocks of the type `s3-bucket`, with credentials of the types `aws-credentials` and `minio-credentials`. Where these
/// have no keys, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN` are taken; where they have no
/// region, `AWS_REGION`, `AWS_DEFAULT_REGION` or `us-east-1`.
#[derive(Debug, Clone, Copy)]
pub struct S3Bucket;

/// A block that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// There are no credentials.
    #[error("its credentials have no keys, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")]
    NoKeys,
    /// It asks for something that is only there in Python.
    #[error("its credentials have `{field}`: {remedy}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
}

#[derive(Deserialize)]
struct Bucket {
    #[serde(rename = "bucket_name")]
    name: String,
    #[serde(default, rename = "bucket_folder")]
    folder: String,
    #[serde(default)]
    credentials: Keys,
}

/// Credentials of both types: each has only its own fields.
#[derive(Default, Deserialize)]
struct Keys {
    #[serde(alias = "minio_root_user")]
    aws_access_key_id: Option<String>,
    #[serde(alias = "minio_root_password")]
    aws_secret_access_key: Option<String>,
    aws_session_token: Option<String>,
    profile_name: Option<String>,
    assume_role_arn: Option<String>,
    region_name: Option<String>,
    #[serde(default)]
    aws_client_parameters: ClientParameters,
}

#[derive(Default, Deserialize)]
struct ClientParameters {
    endpoint_url: Option<String>,
    verify: Option<Verify>,
    verify_cert_path: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Verify {
    Whether(bool),
    /// The older place of `verify_cert_path`.
    By(IgnoredAny),
}

impl StorageBlock for S3Bucket {
    fn slug(&self) -> &'static str {
        "s3-bucket"
    }

    fn open(&self, block: &BlockDocument) -> Result<Arc<dyn ResultStorage>, BoxError> {
        let settings = settings(block.fields()?, |name| std::env::var(name).ok())?;
        Ok(Arc::new(S3Storage::new(&settings).of_block(block.id.0)))
    }
}

/// The settings that a block says, with the rest from the environment.
fn settings(bucket: Bucket, environment: impl Fn(&str) -> Option<String>) -> Result<Settings, BlockError> {
    let Bucket { name, folder, credentials: keys } = bucket;
    let refuse = |field, remedy| Err(BlockError::Unsupported { field, remedy });
    if keys.profile_name.is_some() {
        return refuse("profile_name", "give it keys, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    }
    if keys.assume_role_arn.is_some() {
        return refuse("assume_role_arn", "give it the keys of the role, with their session token");
    }
    let parameters = keys.aws_client_parameters;
    let authority = "let SSL_CERT_FILE name the certificates of the server's authority";
    match parameters.verify {
        None | Some(Verify::Whether(true)) => {}
        Some(Verify::Whether(false) | Verify::By(_)) => return refuse("verify", authority),
    }
    if parameters.verify_cert_path.is_some() {
        return refuse("verify_cert_path", authority);
    }
    let filled = |value: Option<String>| value.filter(|value| !value.is_empty());
    let own = (filled(keys.aws_access_key_id), filled(keys.aws_secret_access_key));
    let (access, secret, token) = if let (Some(access), Some(secret)) = own {
        (access, secret, filled(keys.aws_session_token))
    } else {
        let set = |name| filled(environment(name));
        let (access, secret) = (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY"));
        let (Some(access), Some(secret)) = (access, secret) else { return Err(BlockError::NoKeys) };
        (access, secret, set("AWS_SESSION_TOKEN"))
    };
    let region = filled(keys.region_name)
        .or_else(|| filled(environment("AWS_REGION")))
        .or_else(|| filled(environment("AWS_DEFAULT_REGION")));
    Ok(Settings {
        bucket: name,
        folder,
        endpoint: filled(parameters.endpoint_url),
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        access_key: SecretString::from(access),
        secret_key: SecretString::from(secret),
        session_token: token.map(SecretString::from),
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn read(credentials: Value, environment: &[(&str, &str)]) -> Result<Settings, BlockError> {
        let block = json!({"bucket_name": "results", "bucket_folder": "flows", "credentials": credentials});
        settings(serde_json::from_value(block).unwrap(), |name| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn credentials_of_both_types_are_understood() {
        let minio = json!({"minio_root_user": "me", "minio_root_password": "hush", "region_name": null,
            "aws_client_parameters": {"endpoint_url": "http://127.0.0.1:9000", "verify": null, "use_ssl": true}});
        let settings = read(minio, &[]).unwrap();
        assert_eq!((settings.bucket.as_str(), settings.folder.as_str()), ("results", "flows"));
        assert_eq!(settings.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!((settings.secret_key.expose_secret(), settings.region.as_str()), ("hush", "us-east-1"));
        let aws =
            json!({"aws_access_key_id": "me", "aws_secret_access_key": "hush", "region_name": "eu-west-1"});
        let settings = read(aws, &[("AWS_SESSION_TOKEN", "of others")]).unwrap();
        assert_eq!((settings.region.as_str(), settings.endpoint), ("eu-west-1", None));
        assert!(settings.session_token.is_none(), "it belongs to the keys of the environment");
    }

    #[test]
    fn what_a_block_does_not_say_comes_from_the_environment() {
        let environment =
            [("AWS_ACCESS_KEY_ID", "me"), ("AWS_SECRET_ACCESS_KEY", "hush"), ("AWS_REGION", "eu-west-1")];
        let settings = read(json!({}), &environment).unwrap();
        assert_eq!((settings.access_key.expose_secret(), settings.region.as_str()), ("me", "eu-west-1"));
        assert_eq!(read(json!({}), &[]).unwrap_err(), BlockError::NoKeys);
    }

    #[test]
    fn what_only_python_can_do_is_refused_by_name() {
        for (field, value) in [
            ("profile_name", json!({"profile_name": "work"})),
            ("assume_role_arn", json!({"assume_role_arn": "arn:aws:iam::1:role/x"})),
            ("verify", json!({"aws_client_parameters": {"verify": false}})),
            ("verify", json!({"aws_client_parameters": {"verify": "/ca.pem"}})),
            ("verify_cert_path", json!({"aws_client_parameters": {"verify_cert_path": "/ca.pem"}})),
        ] {
            let error = read(value, &[]).unwrap_err();
            assert!(
                matches!(error, BlockError::Unsupported { field: named, .. } if named == field),
                "{error}"
            );
        }
    }
}
