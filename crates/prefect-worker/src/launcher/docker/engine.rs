//! The connection to a Docker engine, and what its errors mean.

use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::RemoveContainerOptions;

use super::super::{Infrastructure, LaunchError};
use super::address::Address;
use super::refusal;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A Docker engine that has answered.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) docker: Docker,
    /// Whether `host-gateway` may stand for the host's address (Docker 20.10 and later).
    pub(super) host_gateway: bool,
    /// The engine's own id, which outlives its restarts.
    pub(super) id: String,
    /// The architecture that it runs, in Go's words: `amd64`.
    pub(super) architecture: String,
    pub(super) address: Address,
}

impl Engine {
    pub(super) async fn connect(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let address = Address::from_environment(environment)?;
        let client = address.client()?;
        let answer = async {
            let docker = match address.version {
                Some(_) => client,
                None => client.negotiate_version().await?,
            };
            let version = docker.version().await?;
            let info = docker.info().await?;
            Ok::<_, Error>((docker, version, info))
        };
        let (docker, version, info) = match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(address.unreachable(failure(&error))),
            Err(_) => {
                return Err(
                    address.unreachable(format!("no answer within {} seconds", CONNECT_TIMEOUT.as_secs()))
                );
            }
        };
        let number = version.version.unwrap_or_default();
        let architecture = version.arch.unwrap_or_default();
        tracing::info!(
            address = address.host,
            engine.version = number,
            engine.api = %docker.client_version(),
            engine.os = info.operating_system,
            engine.architecture = architecture,
            engine.storage = info.driver,
            engine.id = info.id,
            "connected to the container engine"
        );
        let host_gateway = knows_host_gateway(&number);
        Ok(Self { docker, host_gateway, id: info.id.unwrap_or_default(), architecture, address })
    }

    pub(super) fn infrastructure(&self, id: String, name: String) -> Infrastructure {
        Infrastructure { pid: format!("{}:{id}", self.address.base_url()), id, name }
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
            error if is_outage(&error) => self.address.unreachable(failure(&error)),
            error => {
                let message = failure(&error);
                match refusal::of(&message) {
                    Some(refusal) => LaunchError::Refused { action, refusal, message },
                    None => LaunchError::Engine { action, message },
                }
            }
        }
    }

    /// What a failed step means that has a deadline of its own: an engine that is there and does not finish.
    pub(super) fn step_error(&self, action: &'static str, error: Error) -> LaunchError {
        match error {
            Error::RequestTimeoutError => {
                LaunchError::Deadline { action, seconds: self.address.timeout.as_secs() }
            }
            error => self.error(action, error),
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

/// Whether the engine was not there. Only this may pass; whatever else fails would fail again.
pub(super) fn is_outage(error: &Error) -> bool {
    matches!(
        error,
        Error::RequestTimeoutError
            | Error::IOError { .. }
            | Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_)
    )
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
