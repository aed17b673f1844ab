//! nginx before a Prefect server.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::authority::certify;
use crate::prefect::free_port;
use crate::process::{Command, Process, find_program, read_lossy};

const DEADLINE: Duration = Duration::from_secs(20);
const STOP_GRACE: Duration = Duration::from_secs(5);
const PORT_ATTEMPTS: u32 = 5;

/// What becomes of requests for a WebSocket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WebSockets {
    /// They pass.
    #[default]
    Pass,
    /// They are refused with this HTTP status.
    Refuse(u16),
    /// They are taken and never answered.
    Swallow,
}

/// How a proxy is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on.
    pub host: IpAddr,
    /// The server behind it, without a path: `http://127.0.0.1:4200`.
    pub upstream: String,
    /// The path below which the server appears, for example `/some/prefix`; empty for none.
    pub prefix: String,
    /// Speak TLS, with a certificate of an authority that nobody knows.
    pub tls: bool,
    /// A header, in lower case, and the value that every request must bring; others get 401.
    pub demand: Option<(String, String)>,
    /// What becomes of requests for a WebSocket.
    pub websockets: WebSockets,
}

/// A running proxy. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct Reverse {
    process: Process,
    url: String,
    authority: Option<PathBuf>,
    dir: TempDir,
    /// Where swallowed requests go: connections are taken by the kernel and by nobody else.
    _pit: TcpListener,
}

impl Reverse {
    /// Starts a proxy and waits until it takes connections.
    pub async fn start(options: Options) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let nginx = find_program(Path::new("nginx"))
            .or_else(|_| find_program(Path::new("/usr/sbin/nginx")))
            .context("nginx is needed. Install it (Debian: apt-get install nginx)")?;
        let dir = tempfile::Builder::new()
            .prefix("ferryman-proxy-")
            .tempdir()
            .context("failed to make a directory for nginx")?;
        // Containers mount the authority's certificate and run as somebody else.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
            .context("failed to open the directory of nginx")?;
        let pit = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to listen")?;
        let certificate = options.tls.then(|| certify(options.host, dir.path())).transpose()?;
        for attempt in 0..PORT_ATTEMPTS {
            let listen = SocketAddr::new(options.host, free_port(options.host)?);
            let mut config = head(&options, listen, pit.local_addr().context("failed to listen")?)?;
            if let Some(certificate) = &certificate {
                let (chain, key) = (certificate.chain.display(), certificate.key.display());
                write!(config, "ssl_certificate {chain}; ssl_certificate_key {key};")?;
            }
            config.push_str(&locations(&options)?);
            std::fs::write(dir.path().join("nginx.conf"), config).context("failed to configure nginx")?;
            let log = dir.path().join(format!("error-{attempt}.log"));
            let mut process = Command::new(&nginx)
                .args(["-c", "nginx.conf", "-e", "stderr", "-p"])
                .arg(dir.path())
                .log_to(log)
                .spawn()?;
            match accepts(&mut process, listen).await {
                Ok(()) => {
                    let scheme = if options.tls { "https" } else { "http" };
                    let url = format!("{scheme}://{listen}{}", options.prefix);
                    let authority = certificate.map(|certificate| certificate.authority);
                    return Ok(Self { process, url, authority, dir, _pit: pit });
                }
                Err(_) if process.log().contains("Address already in use") => {}
                Err(error) => return Err(error.context("failed to start nginx")),
            }
        }
        bail!("failed to find a free port for nginx")
    }

    /// The address of the API behind it.
    pub fn api_url(&self) -> String {
        format!("{}/api", self.url)
    }

    /// The certificate of the authority that clients have to trust, if it speaks TLS.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// What came so far, a line each: method, path, status, and the protocol that was to be upgraded to, if any.
    pub fn log(&self) -> Vec<String> {
        read_lossy(self.dir.path().join("access.log")).lines().map(str::to_owned).collect()
    }

    /// Stops the proxy and removes its files.
    pub async fn stop(self) -> Result<()> {
        self.process.stop(STOP_GRACE).await.context("failed to stop nginx")?;
        self.dir.close().context("failed to remove the files of nginx")
    }
}

/// Everything up to the server's certificate.
fn head(options: &Options, listen: SocketAddr, pit: SocketAddr) -> Result<String> {
    let ssl = if options.tls { " ssl" } else { "" };
    let mut text = String::from(
        "daemon off; master_process off; pid nginx.pid; events { }\nhttp {\n\
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
         uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
         log_format passed '$request_method $uri $status $http_upgrade'; access_log access.log passed;\n\
         map $http_upgrade $connection_header { default upgrade; '' ''; }\n",
    );
    writeln!(text, "upstream prefect {{ server {}; }}", options.upstream.trim_start_matches("http://"))?;
    writeln!(text, "upstream pit {{ server {pit}; }}")?;
    writeln!(text, "server {{ listen {listen}{ssl};")?;
    Ok(text)
}

fn locations(options: &Options) -> Result<String> {
    let mut text = String::new();
    if let Some((name, value)) = &options.demand {
        let name = name.replace('-', "_");
        writeln!(text, "\nif ($http_{name} != \"{value}\") {{ return 401; }}")?;
    }
    match options.websockets {
        WebSockets::Pass => {}
        WebSockets::Refuse(status) => writeln!(text, "if ($http_upgrade) {{ return {status}; }}")?,
        WebSockets::Swallow => {
            text.push_str("error_page 418 = @pit; if ($http_upgrade) { return 418; }\n");
            text.push_str("location @pit { proxy_read_timeout 1h; proxy_pass http://pit; }\n");
        }
    }
    let prefix = &options.prefix;
    writeln!(
        text,
        "location {prefix}/ {{ proxy_pass http://prefect/; proxy_http_version 1.1; proxy_read_timeout 1h;\n\
         proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection $connection_header; }}\n}}\n}}"
    )?;
    Ok(text)
}

/// Waits until somebody takes connections at `address`.
pub(super) async fn accepts(process: &mut Process, address: SocketAddr) -> Result<()> {
    let listening = async {
        while process.is_running() {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    };
    let listening = tokio::time::timeout(DEADLINE, listening).await;
    if matches!(listening, Ok(true)) {
        return Ok(());
    }
    bail!("nothing listens on {address}; its log ends with:\n{}", process.tail(20))
}
