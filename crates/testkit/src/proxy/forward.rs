//! tinyproxy on the way out.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::reverse::accepts;
use crate::prefect::free_port;
use crate::process::{Command, Process, find_program};

const STOP_GRACE: Duration = Duration::from_secs(5);
const PORT_ATTEMPTS: u32 = 5;

/// A running forward proxy that wants a user name and a password. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct Forward {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Forward {
    /// Starts a proxy and waits until it takes connections.
    pub async fn start(host: IpAddr) -> Result<Self> {
        let tinyproxy = find_program(Path::new("tinyproxy"))
            .context("tinyproxy is needed. Install it (Debian: apt-get install tinyproxy-bin)")?;
        let dir = tempfile::Builder::new()
            .prefix("ferryman-forward-")
            .tempdir()
            .context("failed to make a directory for tinyproxy")?;
        let config = dir.path().join("tinyproxy.conf");
        for attempt in 0..PORT_ATTEMPTS {
            let address = SocketAddr::new(host, free_port(host)?);
            let text = format!(
                "Listen {host}\nPort {}\nLogLevel Connect\nTimeout 600\nMaxClients 50\nBasicAuth user word\n",
                address.port()
            );
            std::fs::write(&config, text).context("failed to configure tinyproxy")?;
            let log = dir.path().join(format!("tinyproxy-{attempt}.log"));
            let mut process =
                Command::new(&tinyproxy).arg("-d").arg("-c").arg(&config).log_to(log).spawn()?;
            match accepts(&mut process, address).await {
                Ok(()) => return Ok(Self { process, address, dir }),
                Err(_) if process.log().contains("in use") => {}
                Err(error) => return Err(error.context("failed to start tinyproxy")),
            }
        }
        bail!("failed to find a free port for tinyproxy")
    }

    /// What `HTTPS_PROXY` is set to, credentials included.
    pub fn url(&self) -> String {
        format!("http://user:word@{}", self.address)
    }

    /// Its log so far: a line `Request (file descriptor 5): CONNECT host:port HTTP/1.1` for each tunnel.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Stops the proxy and removes its files.
    pub async fn stop(self) -> Result<()> {
        self.process.stop(STOP_GRACE).await.context("failed to stop tinyproxy")?;
        self.dir.close().context("failed to remove the files of tinyproxy")
    }
}
