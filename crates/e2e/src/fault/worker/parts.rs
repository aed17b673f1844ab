//! The parts that are killed: a server, an engine and a worker, and how each comes back.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use testkit::docker::{Daemon, Engine};
use testkit::prefect::{self, PrefectServer};
use testkit::process::{Command, Process, Signal};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::plan::{Part, Strike};
use super::report::Struck;
use crate::fault::{PERSISTENT_LEASES, now};
use crate::programs::Programs;
use crate::puppet;

/// The image of the runs.
pub(super) const IMAGE: &str = "ferryman/puppet:1";
/// The worker's pool.
pub(super) const POOL: &str = "faults";
/// Runs that the worker takes at a time.
const LIMIT: &str = "8";
/// How long a worker may take to stop.
const STOP: Duration = Duration::from_secs(30);

/// All that can be killed. Each has a lock: a part is killed when it is there.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) server: Mutex<PrefectServer>,
    pub(super) daemon: Mutex<Daemon>,
    pub(super) worker: Mutex<Worker>,
    /// Address of the server's API, which it keeps.
    pub(super) api_url: String,
    /// The same as an address.
    pub(super) server_addr: SocketAddr,
    pub(super) engine: Engine,
}

/// The worker, and whether it ended by itself.
#[derive(Debug)]
pub(super) struct Worker {
    command: Command,
    process: Option<Process>,
    /// The ends of its log whenever it ended without being told to.
    pub(super) gave_up: Vec<String>,
}

impl Parts {
    /// Starts server and engine, brings the image into the engine, starts the worker.
    pub(super) async fn start(programs: &Programs, directory: &Path) -> Result<Self> {
        let env = [
            // A run that finds no free slot asks again after this long; the default is half a minute.
            ("PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS", "1"),
            PERSISTENT_LEASES,
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = prefect::Options { env, ..prefect::Options::default() };
        let (server, daemon) = tokio::try_join!(PrefectServer::start(options), Daemon::start())?;
        let engine = daemon.connect().await?;
        puppet::build_image(&engine, programs, IMAGE).await?;
        let command = Command::new(programs.path("prefect-worker")?)
            .args(["start", "--type", "docker", "--pool", POOL, "--name", "faults", "--limit", LIMIT])
            .envs(server.client_env())
            .env("DOCKER_HOST", daemon.host())
            .env("PREFECT_WORKER_QUERY_SECONDS", "3")
            .env("PREFECT_LOGGING_LEVEL", "DEBUG")
            .log_to(worker_log(directory));
        let worker = Worker { process: Some(command.spawn()?), command, gave_up: Vec::new() };
        let (api_url, server_addr) = (server.api_url(), ([127, 0, 0, 1], server.port()).into());
        Ok(Self {
            server: Mutex::new(server),
            daemon: Mutex::new(daemon),
            worker: Mutex::new(worker),
            api_url,
            server_addr,
            engine,
        })
    }

    /// Kills a part and brings it back.
    pub(super) async fn strike(&self, strike: Strike) -> Result<Struck> {
        let away = Duration::from_millis(strike.away);
        let killed_at;
        match strike.part {
            Part::Worker => {
                let mut worker = self.worker.lock().await;
                killed_at = now();
                worker.end(strike.gently).await.context("failed to end the worker")?;
                sleep(away).await;
                worker.start()?;
            }
            Part::Engine => {
                let mut daemon = self.daemon.lock().await;
                killed_at = now();
                daemon.kill().await.context("failed to kill the engine")?;
                sleep(away).await;
                daemon.restart(strike.live_restore).await.context("failed to restart the engine")?;
            }
            Part::Server => {
                let mut server = self.server.lock().await;
                killed_at = now();
                server.kill().await?;
                sleep(away).await;
                server.restart().await.context("failed to restart the server")?;
            }
        }
        Ok(Struck { strike, killed_at, back_at: now() })
    }

    /// Starts the worker again whenever it ends by itself, as a restart policy would.
    pub(super) async fn supervise_worker(&self) -> Result<()> {
        loop {
            sleep(Duration::from_millis(200)).await;
            let mut worker = self.worker.lock().await;
            if let Some(process) = &mut worker.process
                && !process.is_running()
            {
                let end = process.tail(10);
                worker.gave_up.push(end);
                worker.start()?;
            }
        }
    }

    /// Ends everything.
    pub(super) async fn stop(self) -> Result<()> {
        self.worker.into_inner().end(true).await?;
        drop(self.engine);
        self.daemon.into_inner().stop().await?;
        self.server.into_inner().stop().await
    }
}

impl Worker {
    async fn end(&mut self, gently: bool) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if !process.is_running() {
            return Ok(());
        }
        if gently {
            process.stop(STOP).await?;
        } else {
            process.signal(Signal::Kill)?;
            process.wait(STOP).await?;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        self.process = Some(self.command.spawn()?);
        Ok(())
    }
}

/// Where the worker logs to.
pub(super) fn worker_log(directory: &Path) -> PathBuf {
    directory.join("worker.log")
}
