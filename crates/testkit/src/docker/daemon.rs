//! A Docker engine of one's own: another `dockerd` beside the machine's, to be killed and started again.
//!
//! It lives in mount, process and network namespaces of its own, with a `/run` of its own: containers, mounts
//! and the processes between engine and containers end with the first process of these namespaces, hence with
//! our handle, in whatever way that goes. The machine's engine and its containerd are neither seen nor used, and
//! its network is out of reach: an engine without a bridge would delete the `docker0` that it finds. So there is
//! no network in here; containers talk through sockets in mounted directories.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::engine::Engine;
use crate::process::{Command, Process, find_program};

/// The first process of the namespaces: it takes in what has lost its parent, and runs until it is killed.
const FIRST: &str = "mount -t tmpfs tmpfs /run && echo ready && while :; do sleep 1 & wait $!; done";

const POLL: Duration = Duration::from_millis(20);
/// An engine that comes back without live restore first ends its containers, which takes up to ten seconds.
const START_DEADLINE: Duration = Duration::from_mins(1);
const END_DEADLINE: Duration = Duration::from_secs(10);

/// An engine of one's own. Dropping it kills it and its containers and removes its files.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    namespaces: Process,
    directory: TempDir,
}

impl Daemon {
    /// Starts an engine without images. Needs to be root, as every engine does.
    pub async fn start() -> Result<Self> {
        find_program("dockerd".as_ref())
            .context("an engine of its own is needed here: install it (Debian: apt-get install docker.io)")?;
        let directory = tempfile::Builder::new().prefix("ferryman-docker-").tempdir();
        let directory = directory.context("failed to make a directory for the engine")?;
        std::fs::write(directory.path().join("daemon.json"), "{}").context("failed to write to it")?;
        let mut namespaces = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", FIRST])
            .log_to(directory.path().join("namespaces.log"))
            .spawn()?;
        namespaces
            .wait_for_log("ready", START_DEADLINE)
            .await
            .context("failed to make namespaces for an engine, which takes root and util-linux")?;
        let mut daemon = Self { process: None, namespaces, directory };
        daemon.restart(false).await?;
        Ok(daemon)
    }

    /// Its address, as `DOCKER_HOST` names it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A connection to it. Containers and images that are made through it end with it, while the engine runs.
    pub async fn connect(&self) -> Result<Engine> {
        Engine::connect_to(&self.host()).await
    }

    /// Kills the engine with SIGKILL, its containerd with it, and returns when it is gone. Containers go on.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill();
        process.wait(END_DEADLINE).await?;
        let deadline = Instant::now() + END_DEADLINE;
        while UnixStream::connect(self.socket()).await.is_ok() {
            ensure!(Instant::now() < deadline, "the engine still listens {END_DEADLINE:?} after its SIGKILL");
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Starts a killed engine again, and returns when it answers. With `live_restore` it takes running
    /// containers back; without, it ends them.
    pub async fn restart(&mut self, live_restore: bool) -> Result<()> {
        self.kill().await?;
        // Their processes are dead; while nobody has waited for them, an engine would take them for running.
        for file in ["docker.pid", "exec/containerd/containerd.pid"] {
            match std::fs::remove_file(self.directory.path().join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("failed to remove the engine's {file}"));
                }
                _ => {}
            }
        }
        let mut process = self.command(live_restore).spawn()?;
        let deadline = Instant::now() + START_DEADLINE;
        while Engine::answers(&self.host()).await.is_err() {
            if !process.is_running() {
                bail!("the engine ended while starting:\n{}", process.tail(20));
            }
            if Instant::now() > deadline {
                bail!("the engine did not answer after {START_DEADLINE:?}:\n{}", process.tail(20));
            }
            sleep(POLL).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.process.as_ref().map_or_else(String::new, |process| process.tail(lines))
    }

    /// Ends the engine and its containers and removes its files.
    pub async fn stop(mut self) -> Result<()> {
        self.kill().await?;
        self.namespaces.kill();
        self.namespaces.wait(END_DEADLINE).await?;
        let deadline = Instant::now() + END_DEADLINE;
        // The kernel ends what ran in the namespaces in its own time; until then files may still appear.
        while let Err(error) = std::fs::remove_dir_all(self.directory.path()) {
            if Instant::now() > deadline {
                return Err(error).context("failed to remove the files of the engine");
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    fn command(&self, live_restore: bool) -> Command {
        let namespace = |name: &str| format!("/proc/{}/ns/{name}", self.namespaces.pid());
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        Command::new("nsenter")
            .arg(format!("--mount={}", namespace("mnt")))
            .arg(format!("--net={}", namespace("net")))
            .arg(format!("--pid={}", namespace("pid_for_children")))
            .arg("dockerd")
            .args(["--config-file", &path("daemon.json"), "--data-root", &path("data")])
            .args(["--exec-root", &path("exec"), "--pidfile", &path("docker.pid"), "--host", &self.host()])
            // Slow, but it works on every file system and mounts nothing; test images are small.
            .args(["--storage-driver=vfs", "--bridge=none", "--iptables=false"])
            .args(["--ip-masq=false", "--ip-forward=false", "--host-gateway-ip=127.0.0.1"])
            .args(live_restore.then_some("--live-restore"))
            .log_to(self.directory.path().join("dockerd.log"))
    }
}
