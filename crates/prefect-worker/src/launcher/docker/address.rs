//! Where the engine is and how it is spoken to, as docker-py reads it from the environment.

use std::path::PathBuf;
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, BollardRequest, ClientVersion, Docker};

use super::super::LaunchError;
use super::engine::failure;
use super::tls;

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);
/// A pull without any sign of progress for this long has stalled.
const DEFAULT_PULL_SILENCE: Duration = Duration::from_mins(5);
/// No setting names a longer time, in seconds: a year.
const LONGEST: u64 = 366 * 86_400;

/// The settings of a connection.
#[derive(Debug)]
pub(super) struct Address {
    /// The engine, as `DOCKER_HOST` names it.
    pub(super) host: String,
    scheme: Scheme,
    /// How long the engine may take to answer.
    pub(super) timeout: Duration,
    /// The version of the API to speak, whatever the engine offers.
    pub(super) version: Option<ClientVersion>,
    /// The longest silence of a pull.
    pub(super) pull_silence: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Scheme {
    Unix,
    /// Host and port.
    Plain(String),
    /// Host and port, and where the certificates are.
    Tls(String, PathBuf),
}

impl Address {
    /// Reads `DOCKER_HOST`, `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH`, `DOCKER_API_VERSION`,
    /// `DOCKER_CLIENT_TIMEOUT` and `PREFECT_WORKER_PULL_SILENCE_SECONDS`.
    ///
    /// # Errors
    /// A variable that cannot be used; the error names it.
    pub(super) fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, LaunchError> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let host = variable("DOCKER_HOST").unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let wrong = |message: String| LaunchError::Unreachable { address: host.clone(), message };
        let seconds = |name: &str, default| match variable(name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(seconds) if (1..=LONGEST).contains(&seconds) => Ok(Duration::from_secs(seconds)),
                _ => Err(wrong(format!("{name} must be whole seconds, at least 1, but it is {text:?}"))),
            },
        };
        let version = match variable("DOCKER_API_VERSION") {
            None => None,
            Some(text) => Some(parse_version(&text).ok_or_else(|| {
                wrong(format!("DOCKER_API_VERSION must be a version such as 1.41, but it is {text:?}"))
            })?),
        };
        // docker-py asks for TLS if either is set, whatever it is set to.
        let certificates = variable("DOCKER_CERT_PATH").map(PathBuf::from);
        let wants_tls = certificates.is_some() || variable("DOCKER_TLS_VERIFY").is_some();
        let certificates = move || {
            let home = || variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
            certificates.or_else(home).ok_or_else(|| {
                "set DOCKER_CERT_PATH to the directory of ca.pem, cert.pem and key.pem".to_owned()
            })
        };
        let scheme = scheme(&host, wants_tls, certificates).map_err(&wrong)?;
        Ok(Self {
            scheme,
            timeout: seconds("DOCKER_CLIENT_TIMEOUT", DEFAULT_TIMEOUT)?,
            pull_silence: seconds("PREFECT_WORKER_PULL_SILENCE_SECONDS", DEFAULT_PULL_SILENCE)?,
            version,
            host,
        })
    }

    /// A client; whether the engine answers is not known yet.
    pub(super) fn client(&self) -> Result<Docker, LaunchError> {
        let version = self.version.as_ref().unwrap_or(API_DEFAULT_VERSION);
        let timeout = self.timeout.as_secs();
        let connected = match &self.scheme {
            Scheme::Unix => Docker::connect_with_unix(&self.host, timeout, version),
            Scheme::Plain(place) => Docker::connect_with_http(&format!("tcp://{place}"), timeout, version),
            Scheme::Tls(place, certificates) => {
                let address = format!("https://{place}");
                let connected = tls::connect(&address, certificates, self.timeout, version);
                return connected
                    .map(|docker| self.pinned(docker))
                    .map_err(|message| self.unreachable(message));
            }
        };
        connected.map(|docker| self.pinned(docker)).map_err(|error| self.unreachable(failure(&error)))
    }

    /// Paths without a version mean the engine's newest: a pinned one is written before them.
    fn pinned(&self, docker: Docker) -> Docker {
        let Some(version) = self.version else { return docker };
        docker.with_request_modifier(move |mut request: BollardRequest| {
            let mut parts = request.uri().clone().into_parts();
            let path = parts.path_and_query.as_ref().map_or("/", |path| path.as_str());
            if let Ok(path) = format!("/v{version}{path}").parse() {
                parts.path_and_query = Some(path);
            }
            if let Ok(uri) = parts.try_into() {
                *request.uri_mut() = uri;
            }
            request
        })
    }

    /// The address as docker-py writes it into infrastructure ids.
    pub(super) fn base_url(&self) -> String {
        match &self.scheme {
            Scheme::Unix => "http+docker://localhost".to_owned(),
            Scheme::Plain(place) => format!("http://{place}"),
            Scheme::Tls(place, _) => format!("https://{place}"),
        }
    }

    pub(super) fn unreachable(&self, message: String) -> LaunchError {
        LaunchError::Unreachable { address: self.host.clone(), message }
    }
}

fn scheme(
    host: &str,
    wants_tls: bool,
    certificates: impl FnOnce() -> Result<PathBuf, String>,
) -> Result<Scheme, String> {
    let (scheme, rest) = host.split_once("://").unwrap_or(("tcp", host));
    let place = rest.trim_end_matches('/').to_owned();
    let port = place.rsplit_once(':').map(|(_, port)| port);
    let has_port = port.is_some_and(|port| port.parse::<u16>().is_ok());
    match scheme {
        "unix" if place.starts_with('/') => Ok(Scheme::Unix),
        "unix" => Err("DOCKER_HOST must be unix:// and the absolute path of a socket".to_owned()),
        "tcp" | "http" | "https" if place.contains(['/', '@', '?', '#']) => {
            Err("DOCKER_HOST must be tcp://HOST:PORT, without user, path or query".to_owned())
        }
        "tcp" | "http" | "https" if !has_port => {
            Err("DOCKER_HOST lacks a port: tcp://HOST:2376 with TLS, tcp://HOST:2375 without".to_owned())
        }
        "https" => Ok(Scheme::Tls(place, certificates()?)),
        "tcp" | "http" if wants_tls => Ok(Scheme::Tls(place, certificates()?)),
        "tcp" | "http" => Ok(Scheme::Plain(place)),
        "ssh" => Err(format!(
            "this worker does not speak SSH; forward the engine's socket \
             (ssh -NL /run/remote-docker.sock:/var/run/docker.sock {place}) and set \
             DOCKER_HOST=unix:///run/remote-docker.sock, or let the engine listen with TLS"
        )),
        "npipe" => Err("named pipes exist on Windows only; use unix:// or tcp://".to_owned()),
        other => Err(format!("DOCKER_HOST begins with {other:?}; it must be unix:// or tcp://")),
    }
}

fn parse_version(text: &str) -> Option<ClientVersion> {
    let (major, minor) = text.trim_start_matches('v').split_once('.')?;
    Some(ClientVersion { major_version: major.parse().ok()?, minor_version: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(variables: &[(&str, &str)]) -> Result<Address, String> {
        let found =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Address::from_environment(&found).map_err(|error| error.to_string())
    }

    #[test]
    fn infrastructure_ids_carry_docker_pys_base_url() {
        for (variables, url) in [
            (&[][..], "http+docker://localhost"),
            (&[("DOCKER_HOST", "unix:///run/x.sock"), ("DOCKER_TLS_VERIFY", "1")], "http+docker://localhost"),
            (&[("DOCKER_HOST", "tcp://engine:2375")], "http://engine:2375"),
            (&[("DOCKER_HOST", "http://engine:2375/"), ("DOCKER_TLS_VERIFY", "")], "http://engine:2375"),
            (
                &[("DOCKER_HOST", "tcp://engine:2376"), ("DOCKER_TLS_VERIFY", "0"), ("HOME", "/h")],
                "https://engine:2376",
            ),
            (&[("DOCKER_HOST", "tcp://[::1]:2376"), ("DOCKER_CERT_PATH", "/c")], "https://[::1]:2376"),
        ] {
            assert_eq!(address(variables).unwrap().base_url(), url, "{variables:?}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_remedy() {
        for (variables, part) in [
            (&[("DOCKER_HOST", "ssh://user@engine")][..], "ssh -NL"),
            (&[("DOCKER_HOST", "npipe:////./pipe/docker_engine")], "unix:// or tcp://"),
            (&[("DOCKER_HOST", "tcp://engine")], "lacks a port"),
            (&[("DOCKER_HOST", "tcp://engine:2375/x")], "without user, path"),
            (&[("DOCKER_HOST", "gopher://engine:1")], "\"gopher\""),
            (&[("DOCKER_HOST", "unix://relative")], "absolute path"),
            (&[("DOCKER_API_VERSION", "new")], "DOCKER_API_VERSION"),
            (&[("DOCKER_CLIENT_TIMEOUT", "0")], "DOCKER_CLIENT_TIMEOUT"),
            (&[("PREFECT_WORKER_PULL_SILENCE_SECONDS", "soon")], "PREFECT_WORKER_PULL_SILENCE_SECONDS"),
            (&[("DOCKER_HOST", "tcp://engine:2376"), ("DOCKER_TLS_VERIFY", "1")], "DOCKER_CERT_PATH"),
        ] {
            let error = address(variables).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
