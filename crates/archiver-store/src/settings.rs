//! Where the store is and as whom to use it.

use secrecy::SecretString;
use url::Url;

/// How to reach an S3 server.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// Address of the server: `host:port`, which means https, or a URL.
    pub endpoint: String,
    /// Address under which users reach the server; presigned links use it. The same as `endpoint` if none.
    pub external_endpoint: Option<String>,
    /// Region; servers other than AWS's usually take any.
    pub region: String,
    /// Access key id.
    pub access_key: SecretString,
    /// Secret access key.
    pub secret_key: SecretString,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum S3SettingsError {
    /// An address is none.
    #[error(
        "use {value:?} as S3 endpoint: expected host, host:port or an http(s) URL without path ({reason})"
    )]
    Endpoint {
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value is empty.
    #[error("use S3 settings: the {what} is empty")]
    Empty {
        /// Which.
        what: &'static str,
    },
}

/// Reads an endpoint; a value without scheme means https.
pub(crate) fn endpoint_url(value: &str) -> Result<String, S3SettingsError> {
    let refuse =
        |reason: &str| S3SettingsError::Endpoint { value: value.to_owned(), reason: reason.to_owned() };
    let trimmed = value.trim();
    if trimmed.is_empty() {
        return Err(S3SettingsError::Empty { what: "endpoint" });
    }
    let text = if trimmed.contains("://") { trimmed.to_owned() } else { format!("https://{trimmed}") };
    let url = Url::parse(&text).map_err(|error| refuse(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("its scheme is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The value may hold a secret: it is not repeated.
        let value = "…@…".to_owned();
        return Err(S3SettingsError::Endpoint { value, reason: "it holds credentials".to_owned() });
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it has a path, query or fragment"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_without_scheme_mean_https() {
        for (value, url) in [
            ("s3.example:9443", "https://s3.example:9443"),
            ("s3.example", "https://s3.example"),
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            (" 10.0.0.1:9000\n", "https://10.0.0.1:9000"),
        ] {
            assert_eq!(endpoint_url(value).unwrap(), url);
        }
    }

    #[test]
    fn endpoints_with_anything_more_are_refused_and_secrets_not_repeated() {
        for bad in ["", "ftp://x", "https://x/bucket", "https://x/?a=b", "http://", "a b"] {
            assert!(endpoint_url(bad).is_err(), "{bad}");
        }
        let error = endpoint_url("https://me:hunter2@s3.example").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
