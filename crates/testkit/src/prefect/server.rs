//! One Prefect server on a free port, and the Python programs that talk to it.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::venv::{Release, Venv};
use crate::postgres::Postgres;
use crate::process::{Command, Output, Process, Signal, Usage, usage_of_tree};

const POLL: Duration = Duration::from_millis(200);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Somebody else may take a port between our look and the server's bind; then another one is tried.
const PORT_ATTEMPTS: u32 = 5;

/// Where a server keeps its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Database {
    /// A file of its own.
    #[default]
    Sqlite,
    /// A `PostgreSQL` server of its own.
    Postgres,
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The release of Prefect.
    pub release: Release,
    /// Where it keeps its records.
    pub database: Database,
    /// Address to listen on; `0.0.0.0`, or the gateway of a container network, lets containers in.
    pub host: IpAddr,
    /// Auth string (`user:password`) that every client must bring.
    pub auth: Option<SecretString>,
    /// Whether the server demands CSRF tokens.
    pub csrf: bool,
    /// Further environment of the server.
    pub env: Vec<(String, String)>,
    /// How long the server may take until it is healthy.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            release: Release::default(),
            database: Database::default(),
            host: IpAddr::from([127, 0, 0, 1]),
            auth: None,
            csrf: false,
            env: Vec::new(),
            deadline: Duration::from_mins(3),
        }
    }
}

/// A running Prefect server. Dropping it kills its processes and removes its files.
#[derive(Debug)]
pub struct PrefectServer {
    process: Process,
    venv: Venv,
    host: IpAddr,
    port: u16,
    options: Options,
    // After the server's own process: dropped in this order.
    database: Option<Postgres>,
    home: TempDir,
}

impl PrefectServer {
    /// Starts a server and waits until it is healthy.
    pub async fn start(mut options: Options) -> Result<Self> {
        let venv = Venv::of(options.release).await?;
        let database = match options.database {
            Database::Sqlite => None,
            Database::Postgres => Some(Postgres::start().await?),
        };
        if let Some(database) = &database {
            let url = format!("postgresql+asyncpg://{}", database.address());
            options.env.push(("PREFECT_API_DATABASE_CONNECTION_URL".to_owned(), url));
        }
        for _ in 0..PORT_ATTEMPTS {
            if let Some(server) = Self::attempt(&venv, &options).await? {
                return Ok(Self { database, ..server });
            }
        }
        bail!("failed to find a free port for the Prefect server")
    }

    /// One attempt on one port; `None` when the port was taken meanwhile.
    async fn attempt(venv: &Venv, options: &Options) -> Result<Option<Self>> {
        let home = tempfile::Builder::new()
            .prefix("ferryman-prefect-")
            .tempdir()
            .context("failed to make a home for the Prefect server")?;
        let port = free_port(options.host)?;
        let mut process = server_command(venv, options, home.path(), port).spawn()?;
        if !healthy(&mut process, options, port).await? {
            return Ok(None);
        }
        let host = reached_at(options.host);
        Ok(Some(Self {
            process,
            venv: venv.clone(),
            host,
            port,
            options: options.clone(),
            database: None,
            home,
        }))
    }

    /// Kills the server's processes with SIGKILL. Its database and its port remain its own.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill();
        self.process.wait(STOP_GRACE).await.context("failed to kill the Prefect server")?;
        Ok(())
    }

    /// Ends the server as its operator does. Its database and its port remain its own.
    pub async fn shut_down(&mut self) -> Result<()> {
        self.process.signal(Signal::Terminate).context("failed to shut the Prefect server down")?;
        if let Err(error) = self.process.wait(STOP_GRACE).await {
            tracing::debug!(%error, "the server waits for its clients and is killed");
        }
        self.kill().await
    }

    /// Lets the server stand still: connections are still taken by the kernel, and nothing is answered.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.signal(Signal::Stop).context("failed to freeze the Prefect server")
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) -> Result<()> {
        self.process.signal(Signal::Continue).context("failed to thaw the Prefect server")
    }

    /// Starts a server that was killed or shut down again, on the same database and port, and waits until it is healthy.
    pub async fn restart(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.options.deadline;
        loop {
            let mut process =
                server_command(&self.venv, &self.options, self.home.path(), self.port).spawn()?;
            if healthy(&mut process, &self.options, self.port).await? {
                self.process = process;
                return Ok(());
            }
            // The port of one that was just killed may be taken for a moment.
            ensure!(Instant::now() < deadline, "the port {} of the Prefect server is taken", self.port);
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Number of the server's process, which leads its process group.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What all its processes together used so far.
    pub fn usage(&self) -> Result<Usage> {
        usage_of_tree(self.pid()).with_context(|| format!("the server has ended:\n{}", self.log_tail(20)))
    }

    /// How many slots of concurrency limits are held by leases, which come back when these expire. For a server that
    /// keeps its leases in files.
    pub fn leased_slots(&self) -> Result<u64> {
        let directory = self.home.path().join("concurrency_leases");
        if !directory.is_dir() {
            return Ok(0);
        }
        let mut slots = 0;
        for file in std::fs::read_dir(&directory).context("failed to list the server's leases")? {
            let text = std::fs::read(file?.path()).context("failed to read a lease")?;
            // The index beside the leases has none of this.
            let lease: Value = serde_json::from_slice(&text).unwrap_or_default();
            let limits = lease["resource_ids"].as_array().map_or(0, |limits| limits.len() as u64);
            slots += limits * lease["metadata"]["slots"].as_u64().unwrap_or_default();
        }
        Ok(slots)
    }

    /// Address of the API for programs on this machine.
    pub fn api_url(&self) -> String {
        format!("http://{}/api", SocketAddr::new(self.host, self.port))
    }

    /// Address of the API through another name of this machine, such as the gateway of a container network.
    pub fn api_url_via(&self, host: &str) -> String {
        format!("http://{host}:{}/api", self.port)
    }

    /// Address of the user interface.
    pub fn ui_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.host, self.port))
    }

    /// The auth string that clients must bring.
    pub fn auth(&self) -> Option<&str> {
        self.options.auth.as_ref().map(ExposeSecret::expose_secret)
    }

    /// The environment it runs from.
    pub fn venv(&self) -> &Venv {
        &self.venv
    }

    /// The file that holds its log.
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.process.tail(lines)
    }

    /// Environment of a client of this server, ours or Python's: address, credentials, a home of its own.
    pub fn client_env(&self) -> Vec<(String, String)> {
        let mut env = vec![
            ("PREFECT_API_URL".to_owned(), self.api_url()),
            ("PREFECT_HOME".to_owned(), self.home.path().join("client").display().to_string()),
            ("PREFECT_SERVER_ANALYTICS_ENABLED".to_owned(), "false".to_owned()),
        ];
        if let Some(auth) = self.auth() {
            env.push(("PREFECT_API_AUTH_STRING".to_owned(), auth.to_owned()));
        }
        env
    }

    /// Runs the `prefect` command line against this server.
    pub async fn prefect(&self, args: &[&str], deadline: Duration) -> Result<Output> {
        self.client_command(self.venv.bin("prefect")).args(args).output(deadline).await
    }

    /// Runs a piece of Python against this server; `args` are its `sys.argv[1:]`.
    pub async fn python(&self, code: &str, args: &[&str], deadline: Duration) -> Result<Output> {
        self.client_command(self.venv.python()).args(["-c", code]).args(args).output(deadline).await
    }

    /// Starts the Python worker of type docker on a pool. It logs into the server's directory.
    pub fn start_python_worker(&self, pool: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        self.client_command(self.venv.bin("prefect"))
            .args(["worker", "start", "--type", "docker", "--pool", pool])
            .args(args)
            .envs(env.iter().copied())
            .log_to(self.home.path().join(format!("worker-{pool}.log")))
            .spawn()
    }

    /// Stops the server and removes its files.
    pub async fn stop(self) -> Result<()> {
        self.process.stop(STOP_GRACE).await.context("failed to stop the Prefect server")?;
        if let Some(database) = self.database {
            database.stop().await?;
        }
        self.home.close().context("failed to remove the files of the Prefect server")
    }

    fn client_command(&self, program: PathBuf) -> Command {
        Command::new(program).envs(self.client_env()).current_dir(self.home.path())
    }
}

/// Waits until a started server is healthy; false when it ended because its port was taken.
async fn healthy(process: &mut Process, options: &Options, port: u16) -> Result<bool> {
    // What an earlier process of this server said about its port is not about this one.
    let earlier = process.log().len();
    let url = format!("http://{}/api/health", SocketAddr::new(reached_at(options.host), port));
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()
        .context("failed to make an HTTP client")?;
    let deadline = Instant::now() + options.deadline;
    loop {
        if !process.is_running() {
            if process.log().get(earlier..).is_some_and(|log| log.contains("already in use")) {
                return Ok(false);
            }
            bail!("the Prefect server ended while starting; its log ends with:\n{}", process.tail(40));
        }
        let mut request = client.get(&url);
        if let Some((user, password)) =
            options.auth.as_ref().and_then(|auth| auth.expose_secret().split_once(':'))
        {
            request = request.basic_auth(user, Some(password));
        }
        if request.send().await.is_ok_and(|reply| reply.status().is_success()) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            bail!(
                "the Prefect server was not healthy after {:?}; its log ends with:\n{}",
                options.deadline,
                process.tail(40)
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

fn server_command(venv: &Venv, options: &Options, home: &Path, port: u16) -> Command {
    let api_url = format!("http://{}/api", SocketAddr::new(reached_at(options.host), port));
    let command = Command::new(venv.bin("prefect"))
        .args(["server", "start", "--host", &options.host.to_string(), "--port", &port.to_string()])
        .env("PREFECT_HOME", home)
        .env("PREFECT_API_URL", &api_url)
        // Without it the pages of the user interface look for the API on the default port.
        .env("PREFECT_UI_API_URL", &api_url)
        // Several servers may share one environment; each writes its own copy of the pages.
        .env("PREFECT_SERVER_UI_STATIC_DIRECTORY", home.join("ui"))
        .env("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        .env("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", options.csrf.to_string())
        .current_dir(home)
        .log_to(home.join("server.log"));
    let command = match &options.auth {
        Some(auth) => command
            .env("PREFECT_SERVER_API_AUTH_STRING", auth.expose_secret())
            .env("PREFECT_API_AUTH_STRING", auth.expose_secret()),
        None => command,
    };
    command.envs(options.env.iter().cloned())
}

/// The address under which this machine reaches a server that listens on `host`.
fn reached_at(host: IpAddr) -> IpAddr {
    if host.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { host }
}

/// A port that is free at this moment.
pub(crate) fn free_port(host: IpAddr) -> Result<u16> {
    let listener =
        TcpListener::bind((host, 0)).with_context(|| format!("failed to find a free port on {host}"))?;
    Ok(listener.local_addr().context("failed to read the free port")?.port())
}
