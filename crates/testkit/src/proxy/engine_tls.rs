//! nginx before a Docker engine's socket: mutual TLS, as engines speak it over TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::authority::certify_mutually;
use super::reverse::accepts;
use crate::prefect::free_port;
use crate::process::{Command, Process, find_program};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PORT_ATTEMPTS: u32 = 5;

/// An engine that is reached over TLS by who has a certificate. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct EngineTls {
    address: SocketAddr,
    client: PathBuf,
    _process: Process,
    _dir: TempDir,
}

impl EngineTls {
    /// Starts it before the engine at this socket, and waits until it takes connections.
    pub async fn start(socket: &Path) -> Result<Self> {
        let nginx = find_program("nginx".as_ref())
            .or_else(|_| find_program("/usr/sbin/nginx".as_ref()))
            .context("nginx is needed here: install it (Debian: apt-get install nginx)")?;
        let dir = tempfile::Builder::new().prefix("ferryman-engine-tls-").tempdir();
        let dir = dir.context("failed to make a directory for nginx")?;
        let files = certify_mutually(LOOPBACK, dir.path())?;
        for attempt in 0..PORT_ATTEMPTS {
            let address = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
            let config = format!(
                "daemon off; master_process off; pid nginx.pid; user root; events {{ }}\nhttp {{\n\
                 client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
                 uwsgi_temp_path uwsgi; scgi_temp_path scgi; access_log off;\n\
                 server {{ listen {address} ssl; client_max_body_size 0;\n\
                 ssl_certificate {}; ssl_certificate_key {};\n\
                 ssl_client_certificate {}; ssl_verify_client on;\n\
                 location / {{ proxy_pass http://unix:{}:; proxy_http_version 1.1; proxy_buffering off;\n\
                 proxy_read_timeout 1h; }} }} }}\n",
                files.server.chain.display(),
                files.server.key.display(),
                files.server.authority.display(),
                socket.display()
            );
            std::fs::write(dir.path().join("nginx.conf"), config).context("failed to configure nginx")?;
            let mut process = Command::new(&nginx)
                .args(["-c", "nginx.conf", "-e", "stderr", "-p"])
                .arg(dir.path())
                .log_to(dir.path().join(format!("error-{attempt}.log")))
                .spawn()?;
            match accepts(&mut process, address).await {
                Ok(()) => return Ok(Self { address, client: files.client, _process: process, _dir: dir }),
                Err(_) if process.log().contains("Address already in use") => {}
                Err(error) => return Err(error.context("failed to start nginx")),
            }
        }
        bail!("failed to find a free port for nginx")
    }

    /// Its address, as `DOCKER_HOST` names it.
    pub fn host(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// The directory of a client's `ca.pem`, `cert.pem` and `key.pem`, as `DOCKER_CERT_PATH` names it.
    pub fn certificates(&self) -> &Path {
        &self.client
    }
}
