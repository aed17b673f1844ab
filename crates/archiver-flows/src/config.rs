//! What the flows need to know about their surroundings: Prefect variables and Secret blocks.
//!
//! A variable's value comes from the environment variable of the upper-case name if there is one, else from
//! Prefect. All are read and checked before anything is changed; the first error names every variable that is
//! missing.

use std::collections::BTreeMap;
use std::time::Duration;

use archiver::{BucketName, RestoreSettings, Settings, Sites, StorageClass};
use archiver_scicat::SciCatSettings;
use archiver_store::S3Settings;
use futures_util::future::try_join_all;
use prefect_flow::{Context, RecordError, SecretString};
use serde_json::Value;

const S3_REGION: &str = "S3_REGION";
const S3_ARCHIVAL_BUCKET: &str = "S3_ARCHIVAL_BUCKET";
const S3_LANDINGZONE_BUCKET: &str = "S3_LANDINGZONE_BUCKET";
const S3_ENDPOINT: &str = "S3_ENDPOINT";
const S3_EXTERNAL_ENDPOINT: &str = "S3_EXTERNAL_ENDPOINT";
const S3_URL_EXPIRATION_DAYS: &str = "S3_URL_EXPIRATION_DAYS";
const S3_ARCHIVAL_STORAGE_CLASS: &str = "S3_ARCHIVAL_STORAGE_CLASS";
const ARCHIVER_TARGET_SIZE_GB: &str = "ARCHIVER_TARGET_SIZE_GB";
const SCICAT_ENDPOINT: &str = "SCICAT_ENDPOINT";
const SCICAT_API_PREFIX: &str = "SCICAT_API_PREFIX";
const SCICAT_DATASETS_API_PREFIX: &str = "SCICAT_DATASETS_API_PREFIX";
const SCICAT_JOBS_API_PREFIX: &str = "SCICAT_JOBS_API_PREFIX";

const REQUIRED: [&str; 11] = [
    S3_REGION,
    S3_ARCHIVAL_BUCKET,
    S3_LANDINGZONE_BUCKET,
    S3_ENDPOINT,
    S3_EXTERNAL_ENDPOINT,
    S3_URL_EXPIRATION_DAYS,
    ARCHIVER_TARGET_SIZE_GB,
    SCICAT_ENDPOINT,
    SCICAT_API_PREFIX,
    SCICAT_DATASETS_API_PREFIX,
    SCICAT_JOBS_API_PREFIX,
];

/// Storage class of datablocks where none is set.
const DEFAULT_STORAGE_CLASS: &str = "GLACIER";

/// The store's own limit for signed links.
const MAX_LINK_DAYS: u32 = 7;

/// No object is larger than 5 TiB.
const MAX_TARGET_GIB: f64 = 5.0 * 1024.0;

/// Where to archive, from where, and what to tell about it.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) s3: S3Settings,
    pub(crate) scicat: SciCatSettings,
    pub(crate) sites: Sites,
    pub(crate) archiving: Settings,
    /// How long links to datablocks are valid.
    pub(crate) link_validity: Duration,
}

/// Why there is no usable configuration. The run has changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(
        "read the configuration: {} not set; set what is missing with `prefect-config --variables FILE`, or in \
         the environment of the run",
        listed(.0)
    )]
    Missing(Vec<&'static str>),
    #[error("use variable {name} with the value {value:?}: {problem}")]
    Invalid { name: &'static str, value: String, problem: String },
    #[error(
        "read Secret block '{name}'; it is made by `prefect-config --secrets {}_FILE`",
        name.to_uppercase().replace('-', "_")
    )]
    Secret { name: &'static str, source: Box<RecordError> },
    #[error("read variable {name}")]
    Variable { name: &'static str, source: Box<RecordError> },
}

fn listed(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

impl Config {
    /// Reads and checks everything.
    pub(crate) async fn read(ctx: &Context) -> Result<Self, ConfigError> {
        let values = Values::read(ctx).await?;
        // Secrets are asked for only once the rest is complete: one error at a time, the cheapest first.
        values.complete()?;
        let secrets = tokio::try_join!(
            secret(ctx, "s3-user"),
            secret(ctx, "s3-password"),
            secret(ctx, "scicat-user"),
            secret(ctx, "scicat-password")
        )?;
        Self::check(&values, secrets)
    }

    fn check(
        values: &Values,
        secrets: (SecretString, SecretString, SecretString, SecretString),
    ) -> Result<Self, ConfigError> {
        values.complete()?;
        let (access_key, secret_key, user, password) = secrets;
        let days = values.link_days()?;
        let restore = RestoreSettings { days, ..RestoreSettings::default() };
        Ok(Self {
            s3: S3Settings {
                endpoint: values.text(S3_ENDPOINT)?.to_owned(),
                external_endpoint: Some(values.text(S3_EXTERNAL_ENDPOINT)?.to_owned()),
                region: values.text(S3_REGION)?.to_owned(),
                access_key,
                secret_key,
            },
            scicat: SciCatSettings {
                endpoint: values.text(SCICAT_ENDPOINT)?.to_owned(),
                api_prefix: values.text(SCICAT_API_PREFIX)?.to_owned(),
                datasets_prefix: values.text(SCICAT_DATASETS_API_PREFIX)?.to_owned(),
                jobs_prefix: values.text(SCICAT_JOBS_API_PREFIX)?.to_owned(),
                user,
                password,
            },
            sites: Sites {
                landing: values.bucket(S3_LANDINGZONE_BUCKET)?,
                archive: values.bucket(S3_ARCHIVAL_BUCKET)?,
            },
            archiving: Settings {
                target_size: values.target_size()?,
                storage_class: values.storage_class()?,
                restore,
                ..Settings::default()
            },
            link_validity: Duration::from_hours(u64::from(days) * 24),
        })
    }
}

async fn secret(ctx: &Context, name: &'static str) -> Result<SecretString, ConfigError> {
    ctx.secret(name).await.map_err(|source| ConfigError::Secret { name, source: Box::new(source) })
}

/// The variables as they were found, by upper-case name.
#[derive(Debug, Default)]
struct Values(BTreeMap<&'static str, String>);

impl Values {
    async fn read(ctx: &Context) -> Result<Self, ConfigError> {
        let names = REQUIRED.into_iter().chain([S3_ARCHIVAL_STORAGE_CLASS]);
        let read = names.map(|name| async move { Ok::<_, ConfigError>((name, variable(ctx, name).await?)) });
        let found = try_join_all(read).await?;
        Ok(Self(found.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()))
    }

    /// An error that names all variables that are not set.
    fn complete(&self) -> Result<(), ConfigError> {
        let missing: Vec<_> = REQUIRED.into_iter().filter(|name| self.text(name).is_err()).collect();
        if missing.is_empty() { Ok(()) } else { Err(ConfigError::Missing(missing)) }
    }

    /// The value of a required variable. Empty counts as not set.
    fn text(&self, name: &'static str) -> Result<&str, ConfigError> {
        let value = self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        value.ok_or_else(|| ConfigError::Missing(vec![name]))
    }

    fn bucket(&self, name: &'static str) -> Result<BucketName, ConfigError> {
        let text = self.text(name)?;
        text.parse().map_err(|error: archiver::InvalidBucketName| invalid(name, text, error.to_string()))
    }

    fn link_days(&self) -> Result<u32, ConfigError> {
        let text = self.text(S3_URL_EXPIRATION_DAYS)?;
        let days = text.parse().ok().filter(|days| (1..=MAX_LINK_DAYS).contains(days));
        let problem =
            format!("links are valid for 1 to {MAX_LINK_DAYS} whole days, more the store does not sign");
        days.ok_or_else(|| invalid(S3_URL_EXPIRATION_DAYS, text, problem))
    }

    /// In bytes; the variable counts GiB, in spite of its name.
    fn target_size(&self) -> Result<u64, ConfigError> {
        let text = self.text(ARCHIVER_TARGET_SIZE_GB)?;
        let gib = text.parse::<f64>().ok().filter(|gib| *gib > 0.0 && *gib <= MAX_TARGET_GIB);
        let problem = || {
            "a datablock holds more than 0 and at most 5120 GiB; write a number such as 20 or 0.5".to_owned()
        };
        let gib = gib.ok_or_else(|| invalid(ARCHIVER_TARGET_SIZE_GB, text, problem()))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 0..=5 TiB")]
        let bytes = (gib * f64::from(1 << 30)) as u64;
        Ok(bytes.max(1))
    }

    /// `None` for the store's default class.
    fn storage_class(&self) -> Result<Option<StorageClass>, ConfigError> {
        let text = self.0.get(S3_ARCHIVAL_STORAGE_CLASS).map_or(DEFAULT_STORAGE_CLASS, |value| value.trim());
        if matches!(text, "" | "STANDARD") {
            return Ok(None);
        }
        if !text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            let problem = "a storage class is written in capitals, such as GLACIER or STANDARD".to_owned();
            return Err(invalid(S3_ARCHIVAL_STORAGE_CLASS, text, problem));
        }
        Ok(Some(StorageClass::new(text)))
    }
}

fn invalid(name: &'static str, value: &str, problem: String) -> ConfigError {
    ConfigError::Invalid { name, value: value.to_owned(), problem }
}

async fn variable(ctx: &Context, name: &'static str) -> Result<Option<String>, ConfigError> {
    if let Some(value) = std::env::var_os(name) {
        let unreadable = || invalid(name, &value.to_string_lossy(), "it is not UTF-8".to_owned());
        return value.to_str().map(|value| Some(value.to_owned())).ok_or_else(unreadable);
    }
    let value: Option<Value> = ctx
        .variable(&name.to_lowercase())
        .await
        .map_err(|source| ConfigError::Variable { name, source: Box::new(source) })?;
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(value) => Err(invalid(name, &value.to_string(), "it is neither a text nor a number".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(changes: &[(&'static str, Option<&str>)]) -> Values {
        let mut values = BTreeMap::from([
            (S3_REGION, "eu-west-1"),
            (S3_ARCHIVAL_BUCKET, "dev.archival"),
            (S3_LANDINGZONE_BUCKET, "dev.landingzone"),
            (S3_ENDPOINT, "s3:9000"),
            (S3_EXTERNAL_ENDPOINT, "s3.example.org"),
            (S3_URL_EXPIRATION_DAYS, "7"),
            (ARCHIVER_TARGET_SIZE_GB, "20"),
            (SCICAT_ENDPOINT, "http://scicat:3000"),
            (SCICAT_API_PREFIX, "/api/v3"),
            (SCICAT_DATASETS_API_PREFIX, "/api/v3"),
            (SCICAT_JOBS_API_PREFIX, "/api/v4"),
        ]);
        for (name, value) in changes {
            match value {
                Some(value) => values.insert(name, value),
                None => values.remove(name),
            };
        }
        Values(values.into_iter().map(|(name, value)| (name, value.to_owned())).collect())
    }

    fn check(changes: &[(&'static str, Option<&str>)]) -> Result<Config, String> {
        let secret = || SecretString::from("hush");
        Config::check(&values(changes), (secret(), secret(), secret(), secret()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_complete_set_of_variables_is_understood() {
        let config = check(&[]).unwrap();
        assert_eq!(config.archiving.target_size, 20 << 30);
        assert_eq!(config.archiving.storage_class, Some(StorageClass::new("GLACIER")));
        assert_eq!(config.archiving.restore.days, 7);
        assert_eq!(config.link_validity, Duration::from_hours(7 * 24));
        assert_eq!(config.scicat.jobs_prefix, "/api/v4");
        assert_eq!(config.sites.landing.as_str(), "dev.landingzone");
    }

    #[test]
    fn every_missing_variable_is_named_in_one_error_and_empty_means_missing() {
        let error = check(&[(S3_REGION, None), (SCICAT_ENDPOINT, Some(" "))]).unwrap_err();
        insta::assert_snapshot!(error, @"read the configuration: S3_REGION, SCICAT_ENDPOINT are not set; set what is missing with `prefect-config --variables FILE`, or in the environment of the run");
        let error = check(&[(S3_ENDPOINT, None)]).unwrap_err();
        assert!(error.starts_with("read the configuration: S3_ENDPOINT is not set;"), "{error}");
    }

    #[test]
    fn links_live_one_to_seven_whole_days() {
        for bad in ["0", "8", "30", "-1", "1.5", "a week"] {
            let error = check(&[(S3_URL_EXPIRATION_DAYS, Some(bad))]).unwrap_err();
            assert!(error.contains("S3_URL_EXPIRATION_DAYS") && error.contains("1 to 7"), "{error}");
        }
        assert_eq!(check(&[(S3_URL_EXPIRATION_DAYS, Some("1"))]).unwrap().archiving.restore.days, 1);
    }

    #[test]
    fn the_target_size_counts_gibibytes_and_may_be_a_fraction() {
        let bytes =
            |text| check(&[(ARCHIVER_TARGET_SIZE_GB, Some(text))]).map(|config| config.archiving.target_size);
        assert_eq!(bytes("0.5"), Ok(512 << 20));
        assert_eq!(bytes(" 500 "), Ok(500 << 30));
        for bad in ["0", "-3", "NaN", "inf", "6000", "20 GB"] {
            assert!(bytes(bad).unwrap_err().contains("ARCHIVER_TARGET_SIZE_GB"), "{bad}");
        }
    }

    #[test]
    fn the_standard_class_is_the_absence_of_one() {
        let class = |text| {
            check(&[(S3_ARCHIVAL_STORAGE_CLASS, Some(text))]).map(|config| config.archiving.storage_class)
        };
        assert_eq!(class(""), Ok(None));
        assert_eq!(class("STANDARD"), Ok(None));
        assert_eq!(class("DEEP_ARCHIVE"), Ok(Some(StorageClass::new("DEEP_ARCHIVE"))));
        assert!(class("glacier").unwrap_err().contains("in capitals"));
    }

    #[test]
    fn a_bucket_name_that_is_none_is_refused() {
        let error = check(&[(S3_ARCHIVAL_BUCKET, Some("dev/archive"))]).unwrap_err();
        assert!(error.contains("S3_ARCHIVAL_BUCKET"), "{error}");
    }
}
