//! TLS between the worker and a Docker engine: both sides show certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::{BollardRequest, ClientVersion, Docker};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the engine at `address` (`https://HOST:PORT`), with the files `ca.pem`, `cert.pem` and
/// `key.pem` of a directory, as the `docker` program names them.
///
/// # Errors
/// A text that names the file that cannot be used.
pub(super) fn connect(
    address: &str,
    certificates: &Path,
    timeout: Duration,
    version: &ClientVersion,
) -> Result<Docker, String> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config(certificates)?)
        .https_only()
        .enable_http1()
        .wrap_connector(http);
    // As bollard does for other transports: an idle connection would not outlive the engine's restart.
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let transport = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { answer.await.map_err(bollard::errors::Error::from) }
    };
    Docker::connect_with_custom_transport(transport, Some(address), timeout.as_secs(), version)
        .map_err(|error| error.to_string())
}

/// Without `ca.pem` the machine's roots are trusted; without both other files the client shows nothing.
fn config(directory: &Path) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match certificates(&directory.join("ca.pem"))? {
        Some(authorities) => {
            roots.add_parsable_certificates(authorities);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let (chain_path, key_path) = (directory.join("cert.pem"), directory.join("key.pem"));
    let key = match PrivateKeyDer::from_pem_file(&key_path) {
        Ok(key) => Some(key),
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(unusable(&key_path, &error)),
    };
    match (certificates(&chain_path)?, key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(chain), Some(key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            format!("{} and {} do not go together: {error}", chain_path.display(), key_path.display())
        }),
        (Some(_), None) => Err(format!("{} is missing, beside cert.pem", key_path.display())),
        (None, Some(_)) => Err(format!("{} is missing, beside key.pem", chain_path.display())),
    }
}

/// The certificates of a file; `None` if there is no such file.
fn certificates(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
    match CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(found) if found.is_empty() => Err(format!("{} holds no certificate", path.display())),
        Ok(found) => Ok(Some(found)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn is_absent(error: &PemError) -> bool {
    matches!(error, PemError::Io(error) if error.kind() == std::io::ErrorKind::NotFound)
}

fn unusable(path: &Path, error: &PemError) -> String {
    // Other variants may quote the file.
    let problem = match error {
        PemError::Io(error) => error.to_string(),
        PemError::NoItemsFound => "it holds no key in PEM form".to_owned(),
        _ => "it is not in PEM form".to_owned(),
    };
    format!("{} cannot be used: {problem}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_not_quoted() {
        let directory = tempfile::tempdir().unwrap();
        assert!(config(directory.path()).is_ok(), "without files it trusts the machine's roots");
        for (name, text, problem) in [
            ("ca.pem", "secret words", "ca.pem holds no certificate"),
            ("key.pem", "secret words", "key.pem cannot be used: it holds no key"),
            ("cert.pem", "-----BEGIN CERTIFICATE-----\nsecret\n", "cert.pem cannot be used"),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = config(directory.path()).unwrap_err();
            assert!(error.contains(problem) && !error.contains("secret"), "{error}");
            std::fs::remove_file(path).unwrap();
        }
    }
}
