//! Where the catalogue is and as whom to use it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;
use url::Url;

/// Everything but RFC 3986's unreserved characters: SciCat takes an id only as one path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How to reach a SciCat backend.
#[derive(Clone, Debug)]
pub struct SciCatSettings {
    /// Address of the backend: a URL, or `host:port`, which means https.
    pub endpoint: String,
    /// Prefix of the login: `/api/v3` or `/api/v4`.
    pub api_prefix: String,
    /// Prefix of datasets, likewise.
    pub datasets_prefix: String,
    /// Prefix of jobs, likewise.
    pub jobs_prefix: String,
    /// Name of a functional account.
    pub user: SecretString,
    /// Its password.
    pub password: SecretString,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SciCatSettingsError {
    /// The address is none.
    #[error("use {value:?} as SciCat endpoint: expected an http(s) URL or host:port ({reason})")]
    Endpoint {
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A prefix names no version that is supported.
    #[error("use {value:?} as SciCat API prefix: expected one that ends with /v3 or /v4")]
    Prefix {
        /// As given.
        value: String,
    },
    /// The HTTP client cannot be built.
    #[error("set up the HTTP client for SciCat")]
    Client(#[source] reqwest::Error),
}

/// The face of the interface below a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    V3,
    V4,
}

/// The addresses of one group of calls.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) face: Face,
    url: Url,
}

impl Base {
    pub(crate) fn new(endpoint: &Url, prefix: &str) -> Result<Self, SciCatSettingsError> {
        let refuse = || SciCatSettingsError::Prefix { value: prefix.to_owned() };
        let path = prefix.trim().trim_matches('/');
        let face = match path.rsplit('/').next() {
            Some("v3") => Face::V3,
            Some("v4") => Face::V4,
            _ => return Err(refuse()),
        };
        if path.contains(['?', '#']) {
            return Err(refuse());
        }
        let mut url = endpoint.clone();
        url.set_path(&format!("{}/{path}", endpoint.path().trim_end_matches('/')));
        Ok(Self { face, url })
    }

    /// The address below this base with these path segments.
    pub(crate) fn at(&self, segments: &[&str]) -> Url {
        let mut url = self.url.clone();
        let mut path = url.path().to_owned();
        for segment in segments {
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        url.set_path(&path);
        url
    }
}

/// Reads an endpoint; a value without scheme means https.
pub(crate) fn endpoint_url(value: &str) -> Result<Url, SciCatSettingsError> {
    let refuse =
        |reason: &str| SciCatSettingsError::Endpoint { value: value.to_owned(), reason: reason.to_owned() };
    let trimmed = value.trim();
    let text = if trimmed.contains("://") { trimmed.to_owned() } else { format!("https://{trimmed}") };
    let url = Url::parse(&text).map_err(|error| refuse(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        // The value may hold a secret: it is not repeated.
        let value = "…@…".to_owned();
        return Err(SciCatSettingsError::Endpoint { value, reason: "it holds credentials".to_owned() });
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("its scheme is neither http nor https"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it has a query or fragment"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_encoded_segment_below_the_prefix() {
        let endpoint = endpoint_url("https://scicat.example/backend/").unwrap();
        let base = Base::new(&endpoint, "/api/v3/").unwrap();
        assert_eq!(
            base.at(&["datasets", "20.500.12345/a b%Ω", "datablocks"]).as_str(),
            "https://scicat.example/backend/api/v3/datasets/20.500.12345%2Fa%20b%25%CE%A9/datablocks"
        );
        assert_eq!(base.face, Face::V3);
        assert_eq!(Base::new(&endpoint, "api/v4").unwrap().face, Face::V4);
    }

    #[test]
    fn other_versions_and_odd_addresses_are_refused() {
        let endpoint = endpoint_url("scicat.example:3000").unwrap();
        assert_eq!(endpoint.as_str(), "https://scicat.example:3000/");
        for bad in ["", "/api", "/api/v5", "/api/v3?x"] {
            assert!(Base::new(&endpoint, bad).is_err(), "{bad}");
        }
        for bad in ["", "ftp://x", "http://x?y"] {
            assert!(endpoint_url(bad).is_err(), "{bad}");
        }
        let error = endpoint_url("http://me:hunter2@x").unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
