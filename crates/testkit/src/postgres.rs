//! A real `PostgreSQL` server on a free port of this machine, with nothing in it.
//!
//! It refuses to run as root; then it runs as the user `postgres` of the distribution's package. Nobody but this
//! machine can reach it, and it trusts whoever does.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::prefect::free_port;
use crate::process::{Command, Process, find_program};

/// Where Debian keeps the programs, which are not in `PATH`: a folder for each version.
const VERSIONS: &str = "/usr/lib/postgresql";
const USER: &str = "postgres";
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

const DEADLINE: Duration = Duration::from_mins(1);
const STOP_GRACE: Duration = Duration::from_secs(10);
const PORT_ATTEMPTS: u32 = 5;

/// A running `PostgreSQL` server. Dropping it kills its processes and removes its files.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl Postgres {
    /// Starts a server and waits until it takes connections.
    pub async fn start() -> Result<Self> {
        let programs = programs()?;
        let dir = tempfile::Builder::new()
            .prefix("ferryman-postgres-")
            .tempdir()
            .context("failed to make a directory for PostgreSQL")?;
        let root = is_root(dir.path())?;
        if root {
            Command::new("chown").args([USER]).arg(dir.path()).output(DEADLINE).await?.success()?;
        }
        let data = dir.path().join("data");
        as_user(root, programs.join("initdb"))
            .args(["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-sync", "--pgdata"])
            .arg(&data)
            .current_dir(dir.path())
            .output(DEADLINE)
            .await?
            .success()
            .context("failed to make a database cluster")?;
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port(LOOPBACK)?;
            let log = dir.path().join(format!("server-{port}.log"));
            let mut process = as_user(root, programs.join("postgres"))
                .args(["-c", &format!("listen_addresses={LOOPBACK}"), "-c", "unix_socket_directories="])
                // The files go when the test ends: nothing has to survive a power cut.
                .args(["-c", "fsync=off", "-c", "full_page_writes=off", "-p", &port.to_string(), "-D"])
                .arg(&data)
                .current_dir(dir.path())
                .log_to(log)
                .spawn()?;
            match process.wait_for_log("ready to accept connections", DEADLINE).await {
                Ok(()) => return Ok(Self { process, port, dir }),
                Err(_) if process.log().contains("Address already in use") => {}
                Err(error) => return Err(error.context("failed to start PostgreSQL")),
            }
        }
        bail!("failed to find a free port for PostgreSQL")
    }

    /// User, host, port and database, as URLs name them.
    pub fn address(&self) -> String {
        format!("{USER}:trusted@{LOOPBACK}:{}/{USER}", self.port)
    }

    /// Stops the server and removes its files.
    pub async fn stop(self) -> Result<()> {
        self.process.stop(STOP_GRACE).await.context("failed to stop PostgreSQL")?;
        self.dir.close().context("failed to remove the files of PostgreSQL")
    }
}

/// The folder of the newest installed version.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).into_iter().flatten().filter_map(Result::ok);
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, path)| path.join("initdb").is_file())
        .max();
    if let Some((_, path)) = newest {
        return Ok(path);
    }
    let initdb = find_program(Path::new("initdb"))
        .context("PostgreSQL is needed. Install it (Debian: apt-get install postgresql)")?;
    initdb.parent().map(Path::to_owned).context("initdb is in no directory")
}

/// Whether this process is root: files that it makes say so.
fn is_root(own: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(own).with_context(|| format!("failed to look at {}", own.display()))?;
    Ok(metadata.uid() == 0)
}

fn as_user(root: bool, program: PathBuf) -> Command {
    if !root {
        return Command::new(program);
    }
    Command::new("setpriv").args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program)
}
