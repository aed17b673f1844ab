//! The connection to a Docker engine.

use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::RemoveContainerOptions;

use super::super::{Infrastructure, LaunchError};

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A Docker engine that has answered.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) docker: Docker,
    /// Whether `host-gateway` may stand for the host's address (Docker 20.10 and later).
    pub(super) host_gateway: bool,
    /// The engine's own id, which outlives its restarts.
    pub(super) id: String,
    address: String,
}

impl Engine {
    pub(super) async fn connect(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let variable = |name| environment(name).filter(|value| !value.is_empty());
        let address = variable("DOCKER_HOST").unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let unreachable = |message: String| LaunchError::Unreachable { address: address.clone(), message };
        if variable("DOCKER_TLS_VERIFY").is_some() && !address.starts_with("unix://") {
            let message =
                "DOCKER_TLS_VERIFY is set, but this worker speaks to engines over local sockets or plain TCP";
            return Err(unreachable(message.to_owned()));
        }
        let timeout = match variable("DOCKER_CLIENT_TIMEOUT") {
            None => DEFAULT_TIMEOUT,
            Some(text) => match text.parse() {
                Ok(seconds) => Duration::from_secs(seconds),
                Err(_) => {
                    return Err(unreachable(format!(
                        "DOCKER_CLIENT_TIMEOUT must be seconds, but it is {text:?}"
                    )));
                }
            },
        };
        let docker = Docker::connect_with_host(&address).map_err(|error| unreachable(failure(&error)))?;
        let answer = async {
            let docker = docker.with_timeout(timeout).negotiate_version().await?;
            let version = docker.version().await?;
            let id = docker.info().await?.id.unwrap_or_default();
            Ok::<_, Error>((docker, version, id))
        };
        let (docker, version, id) = match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(unreachable(failure(&error))),
            Err(_) => return Err(unreachable("no answer within 10 seconds".to_owned())),
        };
        let version = version.version.unwrap_or_default();
        let host_gateway = knows_host_gateway(&version);
        tracing::info!(engine.version = version, address, "connected to the container engine");
        Ok(Self { docker, host_gateway, id, address })
    }

    pub(super) fn infrastructure(&self, id: String, name: String) -> Infrastructure {
        Infrastructure { pid: format!("{}:{id}", base_url(&self.address)), id, name }
    }

    /// Removes a container, also one that runs. What is gone already is no error.
    pub(super) async fn remove(&self, id: &str) -> Result<(), LaunchError> {
        let options = RemoveContainerOptions { v: true, force: true, link: false };
        match self.docker.remove_container(id, Some(options)).await {
            // 409: somebody is removing it right now.
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(self.error("remove the container", error)),
        }
    }

    /// What a failed call means, when a 404 is about something else than the container.
    pub(super) fn error(&self, action: &'static str, error: Error) -> LaunchError {
        match error {
            Error::DockerResponseServerError { status_code: 404, message }
                if message.contains("No such image") =>
            {
                let image = message.rsplit_once("No such image: ").map_or("", |(_, image)| image).to_owned();
                LaunchError::Image { image, message }
            }
            // Only these may pass; whatever else fails would fail again.
            error @ (Error::RequestTimeoutError
            | Error::IOError { .. }
            | Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_)) => {
                LaunchError::Unreachable { address: self.address.clone(), message: failure(&error) }
            }
            error => LaunchError::Engine { action, message: failure(&error) },
        }
    }

    /// What a failed call about one container means.
    pub(super) fn container_error(&self, action: &'static str, id: &str, error: Error) -> LaunchError {
        match error {
            Error::DockerResponseServerError { status_code: 404, .. } => {
                LaunchError::NotFound { id: id.to_owned() }
            }
            error => self.error(action, error),
        }
    }
}

/// The text of an error with its causes.
pub(super) fn failure(error: &Error) -> String {
    if let Error::DockerResponseServerError { message, .. } = error {
        return message.clone();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The address as docker-py writes it into infrastructure ids.
fn base_url(address: &str) -> String {
    match address.split_once("://") {
        Some(("tcp" | "http", rest)) => format!("http://{}", rest.trim_end_matches('/')),
        _ => "http+docker://localhost".to_owned(),
    }
}

fn knows_host_gateway(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    });
    let major = numbers.next().unwrap_or(0);
    let minor = numbers.next().unwrap_or(0);
    // Podman and others answer with versions of their own; they know the word.
    (major, minor) >= (20, 10) || major < 17
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infrastructure_ids_carry_docker_pys_base_url() {
        assert_eq!(base_url("unix:///var/run/docker.sock"), "http+docker://localhost");
        assert_eq!(base_url("tcp://engine:2375"), "http://engine:2375");
    }

    #[test]
    fn host_gateway_came_with_20_10() {
        for (version, knows) in
            [("20.10.24+dfsg1", true), ("19.03.1", false), ("28.2.2", true), ("5.4.0", true)]
        {
            assert_eq!(knows_host_gateway(version), knows, "{version}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_unreachable() {
        let environment = |name: &str| (name == "DOCKER_HOST").then(|| "unix:///no/such.sock".to_owned());
        let error = Engine::connect(&environment).await.err().unwrap();
        assert!(error.is_transient());
        assert!(error.to_string().contains("unix:///no/such.sock"), "{error}");
    }
}
