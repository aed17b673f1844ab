//! Why a worker cannot start.

use std::net::SocketAddr;
use std::path::PathBuf;

use prefect_api::template::TemplateError;
use prefect_client::settings;

use crate::compatibility;
use crate::control;
use crate::launcher::LaunchError;
use crate::policy::PolicyError;

/// What keeps a worker from starting. Once started, it outlives every outage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The server cannot be talked to.
    #[error(transparent)]
    Api(#[from] prefect_client::Error),
    /// The container engine cannot be used.
    #[error(transparent)]
    Launcher(#[from] LaunchError),
    /// No such pool, and no leave to make it.
    #[error("find the work pool {name:?}: the server has none of this name")]
    UnknownPool {
        /// The pool.
        name: String,
    },
    /// The pool is for workers of another type.
    #[error("serve the work pool {name:?}: it is of type {actual:?}, not {expected:?}")]
    PoolType {
        /// The pool.
        name: String,
        /// The type of this worker.
        expected: String,
        /// The type of the pool.
        actual: String,
    },
    /// There is no launcher for pools of this type.
    #[error(
        "serve a work pool of type {kind:?}: this worker serves pools of types \"docker\" and \"process\""
    )]
    UnsupportedType {
        /// The type.
        kind: String,
    },
    /// The base job template of the pool, or the one given, is wrong.
    #[error("use the base job template of {origin}")]
    Template {
        /// Where it comes from.
        origin: String,
        /// What is wrong.
        source: TemplateError,
    },
    /// The file with the base job template cannot be read.
    #[error("read the base job template {}", path.display())]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file with the base job template is not JSON of the right form.
    #[error("understand the base job template {}", path.display())]
    TemplateSyntax {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A worker cannot be reached from outside.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The policy file of the operator cannot be used: the worker does not start without it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A policy is about containers, and the pool is not.
    #[error("keep the policy on a work pool of type {kind:?}: its rules are about containers")]
    PolicyWithoutContainers {
        /// The type of the pool.
        kind: String,
    },
    /// The server speaks another API.
    #[error("work with the Prefect server: {problem}")]
    ServerVersion {
        /// What is wrong with its version.
        problem: String,
    },
    /// The health server cannot listen.
    #[error("listen on {address} for health checks")]
    Health {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// The exit code: 64 for what the user can correct, 69 for what is not there.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_)
            | Self::Policy(_)
            | Self::PolicyWithoutContainers { .. }
            | Self::ServerVersion { .. }
            | Self::UnknownPool { .. }
            | Self::PoolType { .. }
            | Self::UnsupportedType { .. }
            | Self::Template { .. }
            | Self::TemplateFile { .. }
            | Self::TemplateSyntax { .. } => 64,
            Self::Api(error) => match error.status() {
                Some(401 | 403 | 404 | 422) => 64,
                _ if error.is_transient() => 69,
                _ => 1,
            },
            Self::Control(error) => error.exit_code(),
            Self::Launcher(_) | Self::Health { .. } => 69,
        }
    }

    /// Whether the server is only away: it may come back while we wait.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_transient())
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Settings(error) => Some(error.hint()),
            Self::Api(error) => error.hint(),
            Self::Launcher(LaunchError::Unreachable { .. }) => Some(
                "is the Docker engine running, and may this user (or container) use its socket? \
                 mount /var/run/docker.sock or set DOCKER_HOST",
            ),
            Self::UnknownPool { .. } => Some(
                "check --pool and PREFECT_API_URL; with --type docker or --type process, and unless --no-create-pool-if-not-found, the pool is created",
            ),
            Self::PoolType { .. } | Self::UnsupportedType { .. } => {
                Some("choose a pool of type docker or process, or start the worker that serves this type")
            }
            Self::Template { .. } => Some(
                "declare every placeholder of job_configuration in variables.properties, or correct its name",
            ),
            Self::Policy(_) | Self::PolicyWithoutContainers { .. } => {
                Some("see docs/guides/policy.md; --policy and PREFECT_WORKER_POLICY_FILE name the file")
            }
            Self::ServerVersion { .. } => Some(compatibility::REMEDY),
            Self::Health { .. } => {
                Some("set PREFECT_WORKER_WEBSERVER_HOST and PREFECT_WORKER_WEBSERVER_PORT")
            }
            Self::Control(error) => error.hint(),
            Self::Launcher(_) | Self::TemplateFile { .. } | Self::TemplateSyntax { .. } => None,
        }
    }
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
