//! One installation: Prefect server, S3, SciCat, a network, our images, the bootstrap and a worker.
//!
//! The servers listen on the gateway address of a Docker network of their own: this machine and the containers
//! reach them under one address, others do not. Containers join that network as
//! `{{ $PREFECT_NETWORK }}` of `prefect/prefect.yaml` says. Everything ends with [`Stack::stop`]; what a failure
//! leaves is removed by [`remove_leftovers`].

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prefect_client::Client;
use tempfile::TempDir;
use testkit::docker::{Container, Engine};
use testkit::prefect::{self, PrefectServer};
use testkit::s3::{self, S3Server};
use testkit::scicat::{self, SciCat};

use crate::images::Images;
use crate::programs::Programs;
use crate::{containers, runs};

/// The landing zone of the development environment.
pub const LANDING_ZONE: &str = "dev.landingzone";
/// The archive of the development environment.
pub const ARCHIVE: &str = "dev.archival";
/// The pools that the bootstrap makes.
pub const POOLS: [&str; 2] = ["archival-docker-workpool", "retrieval-docker-workpool"];

/// How long the bootstrap may take.
const BOOTSTRAP: Duration = Duration::from_mins(2);

/// The Prefect server of a stack.
#[derive(Debug)]
pub enum Server {
    /// Started by us.
    Ours(Box<PrefectServer>),
    /// Somebody's, named by `PREFECT_API_URL`.
    Theirs {
        /// The API's root.
        api_url: String,
        /// The caller's settings for it: credentials and the like.
        settings: Vec<(String, String)>,
    },
}

impl Server {
    /// The one that `PREFECT_API_URL` names, or a fresh one on `host`.
    pub async fn start(host: IpAddr) -> Result<Self> {
        let settings: Vec<_> = std::env::vars()
            .filter(|(name, _)| name.starts_with("PREFECT_API_") || name.starts_with("PREFECT_CLIENT_"))
            .collect();
        if let Some((_, api_url)) =
            settings.iter().find(|(name, value)| name == "PREFECT_API_URL" && !value.is_empty())
        {
            reachable(api_url, &settings).await?;
            return Ok(Self::Theirs { api_url: api_url.clone(), settings });
        }
        let server = PrefectServer::start(prefect::Options { host, ..prefect::Options::default() }).await?;
        Ok(Self::Ours(Box::new(server)))
    }

    /// The API's root.
    pub fn api_url(&self) -> String {
        match self {
            Self::Ours(server) => server.api_url(),
            Self::Theirs { api_url, .. } => api_url.clone(),
        }
    }

    /// What a client of it needs in its environment.
    pub fn client_env(&self) -> Vec<(String, String)> {
        match self {
            Self::Ours(server) => vec![("PREFECT_API_URL".to_owned(), server.api_url())],
            Self::Theirs { settings, .. } => settings.clone(),
        }
    }

    /// The page of a run in the UI.
    pub fn run_page(&self, run: impl std::fmt::Display) -> String {
        runs::page(&self.api_url(), run)
    }
}

/// A running installation.
#[derive(Debug)]
pub struct Stack {
    /// The Docker engine.
    pub engine: Arc<Engine>,
    /// The Prefect server.
    pub server: Server,
    /// A client of it.
    pub prefect: Client,
    /// The S3 server.
    pub s3: S3Server,
    /// The catalogue.
    pub scicat: SciCat,
    /// Our images.
    pub images: Images,
    /// The network that containers join.
    pub network: String,
    secrets: TempDir,
    worker: Option<String>,
}

/// The servers of a stack, before there are images.
#[derive(Debug)]
pub struct Servers {
    engine: Arc<Engine>,
    server: Server,
    s3: S3Server,
    scicat: SciCat,
    network: String,
}

impl Servers {
    /// Makes the network and starts the three servers.
    pub async fn start(engine: Arc<Engine>, network: &str) -> Result<Self> {
        engine.create_network(network).await?;
        let host = engine.gateway(network).await?;
        let s3 = S3Server::start(s3::Options {
            host,
            buckets: vec![LANDING_ZONE.to_owned(), ARCHIVE.to_owned()],
            ..s3::Options::default()
        });
        let scicat = SciCat::start(scicat::Options { host, ..scicat::Options::default() });
        let (server, s3, scicat) = tokio::try_join!(Server::start(host), s3, scicat)?;
        Ok(Self { engine, server, s3, scicat, network: network.to_owned() })
    }

    /// Builds the images, which makes it a stack that wants a bootstrap.
    pub async fn with_images(self, programs: &Programs, tag: &str) -> Result<Stack> {
        let images = Images::build(&self.engine, programs, tag, false).await?;
        let prefect = runs::client(&self.server.api_url(), &self.server.client_env())?;
        let secrets = secrets(&self.s3, &self.scicat)?;
        let Self { engine, server, s3, scicat, network } = self;
        Ok(Stack { engine, server, prefect, s3, scicat, images, network, secrets, worker: None })
    }
}

impl Stack {
    /// Registers variables, secrets, limits, pools and deployments: the config container, run twice as the
    /// compose file does.
    pub async fn bootstrap(&self) -> Result<()> {
        let register = [
            "--variables",
            "prefect/vars_dev.toml",
            "--limits",
            "prefect/concurrency-limits.toml",
            "--work-pools",
            "workpools",
            "--secrets",
            "S3_USER_FILE",
            "S3_PASSWORD_FILE",
            "SCICAT_USER_FILE",
            "SCICAT_PASSWORD_FILE",
            "GITHUB_USER_FILE",
            "GITHUB_PASSWORD_FILE",
        ];
        self.run_config(&register).await?;
        self.run_config(&[
            "prefect",
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            "prefect/prefect.yaml",
        ])
        .await
    }

    async fn run_config(&self, command: &[&str]) -> Result<()> {
        let id = self
            .engine
            .run(Container {
                image: self.images.config.clone(),
                command: command.iter().map(|&word| word.to_owned()).collect(),
                env: self.bootstrap_env(),
                network: Some(self.network.clone()),
                binds: vec![format!("{}:/run/secrets:ro", self.secrets.path().display())],
                ..Container::default()
            })
            .await?;
        let code = self.engine.wait(&id, BOOTSTRAP).await?;
        ensure!(code == 0, "{} ended with {code}:\n{}", command.join(" "), self.engine.logs(&id).await?);
        self.engine.remove_container(&id).await
    }

    /// What an installation sets in its `.env` file.
    pub fn bootstrap_env(&self) -> Vec<(String, String)> {
        let mut env = self.server.client_env();
        let mut set = |name: &str, value: &str| env.push((name.to_owned(), value.to_owned()));
        set("S3_ENDPOINT", &self.s3.endpoint());
        set("S3_EXTERNAL_ENDPOINT", &self.s3.endpoint());
        set("S3_LANDINGZONE_BUCKET", LANDING_ZONE);
        set("S3_ARCHIVAL_BUCKET", ARCHIVE);
        set("SCICAT_ENDPOINT", &self.scicat.url());
        set("PREFECT_RUNTIME_IMAGE", &self.images.runtime);
        set("PREFECT_NETWORK", &self.network);
        for name in
            ["S3_USER", "S3_PASSWORD", "SCICAT_USER", "SCICAT_PASSWORD", "GITHUB_USER", "GITHUB_PASSWORD"]
        {
            set(&format!("{name}_FILE"), &format!("/run/secrets/{name}"));
        }
        env
    }

    /// Starts our worker in a container, with the engine's socket and nothing else of this machine.
    pub async fn start_worker(&mut self, pool: &str) -> Result<String> {
        let socket = engine_socket()?;
        let id = self
            .engine
            .run(Container {
                image: self.images.worker.clone(),
                command: ["prefect", "worker", "start", "--type", "docker", "--pool", pool]
                    .map(str::to_owned)
                    .to_vec(),
                env: [
                    self.server.client_env(),
                    vec![("PREFECT_WORKER_QUERY_SECONDS".to_owned(), "2".to_owned())],
                ]
                .concat(),
                network: Some(self.network.clone()),
                binds: vec![format!("{}:/var/run/docker.sock", socket.display())],
                groups: vec![group_of(&socket)?],
                ..Container::default()
            })
            .await?;
        self.worker = Some(id.clone());
        Ok(id)
    }

    /// The last lines of the worker's own log.
    pub async fn worker_log(&self) -> String {
        match &self.worker {
            Some(id) => self.engine.logs(id).await.unwrap_or_default(),
            None => String::new(),
        }
    }

    /// Stops the servers.
    pub async fn stop(self) -> Result<()> {
        self.s3.stop().await;
        self.scicat.stop().await;
        match self.server {
            Server::Ours(server) => server.stop().await,
            Server::Theirs { .. } => Ok(()),
        }
    }
}

/// An error unless the API answers, and containers can reach it too.
async fn reachable(api_url: &str, settings: &[(String, String)]) -> Result<()> {
    let client = runs::client(api_url, settings)?;
    client.health().await.context("PREFECT_API_URL names a Prefect server that cannot be used")?;
    let host = client.api_url().host_str().unwrap_or_default();
    ensure!(
        !matches!(host, "localhost" | "127.0.0.1" | "[::1]"),
        "containers cannot reach {api_url}, which means this machine only\n\
         hint: let the server listen on another address too (`--host 0.0.0.0`) and name that in PREFECT_API_URL"
    );
    Ok(())
}

/// Removes the containers that a worker started on `network`, then what carries the engine's label.
pub async fn remove_leftovers(engine: &Engine, network: &str) -> Result<()> {
    let left = containers::on_network(engine.api(), network).await.unwrap_or_default();
    containers::remove(engine.api(), &left).await;
    engine.clean_up().await
}

/// The secret files of an installation, readable by the user of the config image.
fn secrets(s3: &S3Server, scicat: &SciCat) -> Result<TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::Builder::new().prefix("ferryman-secrets-").tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let files = [
        ("S3_USER", s3.access_key()),
        ("S3_PASSWORD", s3.secret_key()),
        ("SCICAT_USER", scicat.username()),
        ("SCICAT_PASSWORD", scicat.password()),
        ("GITHUB_USER", "nobody"),
        ("GITHUB_PASSWORD", "no registry here"),
    ];
    for (name, value) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("{value}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(directory)
}

/// The engine's socket on this machine.
pub fn engine_socket() -> Result<std::path::PathBuf> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let path = host.strip_prefix("unix://").with_context(|| {
        format!(
            "DOCKER_HOST is {host}\nhint: the demo mounts the engine's socket, which must be on this machine"
        )
    })?;
    Ok(path.into())
}

/// The group that may use a socket.
fn group_of(socket: &Path) -> Result<String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata =
        std::fs::metadata(socket).with_context(|| format!("failed to look at {}", socket.display()))?;
    Ok(metadata.gid().to_string())
}
