//! A real image registry (Debian's `docker-registry`), with a gate before it that counts and injects faults.
//!
//! The engine takes registries on the loopback address without TLS. All requests pass the gate. Faults are asked
//! for with the HTTP method as `what` and the path as subject; one that strikes after the effect strikes in the
//! middle of the answer's body: the first half has been sent.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use bollard::query_parameters::{PushImageOptionsBuilder, TagImageOptionsBuilder};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::docker::Engine;
use crate::faults::{Action, Faults};
use crate::prefect::free_port;
use crate::process::{Command, Process, find_program};
use crate::server::{Connection, Server};
use crate::upstream::Upstream;

/// The only account of a registry that asks who is there.
pub const USER: &str = "ferryman";
/// Its password.
pub const PASSWORD: &str = "ferryman-test";
/// The account as the registry's file names it: bcrypt, as it demands.
const HTPASSWD: &str = "ferryman:$2b$04$xNe1Rk8ZEaQFPQoTieUjaOG9ENhp5h8uqHX82qeI3/.1QP.9xo99i\n";

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DEADLINE: Duration = Duration::from_secs(20);
const PUSH_DEADLINE: Duration = Duration::from_mins(2);
const PORT_ATTEMPTS: u32 = 5;

/// A request that passed the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// HTTP method.
    pub method: String,
    /// Path.
    pub path: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Who asked, if the request said so.
    pub user: Option<String>,
}

/// A running registry. Dropping it ends it and removes its images.
#[derive(Debug)]
pub struct Registry {
    gate: Arc<Gate>,
    server: Server,
    _process: Process,
    _dir: TempDir,
    closed: bool,
}

impl Registry {
    /// Starts a registry that lets everybody in.
    pub async fn start() -> Result<Self> {
        Self::start_with(false).await
    }

    /// Starts a registry that lets [`USER`] in only.
    pub async fn start_closed() -> Result<Self> {
        Self::start_with(true).await
    }

    async fn start_with(closed: bool) -> Result<Self> {
        let program = find_program("docker-registry".as_ref())
            .context("a registry is needed here: install it (Debian: apt-get install docker-registry)")?;
        let dir = tempfile::Builder::new().prefix("ferryman-registry-").tempdir();
        let dir = dir.context("failed to make a directory for the registry")?;
        for _ in 0..PORT_ATTEMPTS {
            let address = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
            let config = configure(dir.path(), address, closed)?;
            let log = dir.path().join(format!("registry-{}.log", address.port()));
            let mut process = Command::new(&program).arg("serve").arg(config).log_to(log).spawn()?;
            if !listens(&mut process, address).await? {
                continue;
            }
            let gate = Arc::new(Gate {
                upstream: Upstream::new(format!("http://{address}"))?,
                faults: Faults::default(),
                calls: Mutex::default(),
                open: watch::Sender::default(),
            });
            let router = Router::new().fallback(pass).with_state(Arc::clone(&gate));
            let server = Server::start(LOOPBACK, 0, router).await?;
            return Ok(Self { gate, server, _process: process, _dir: dir, closed });
        }
        bail!("failed to find a free port for the registry")
    }

    /// Host and port, as image references begin.
    pub fn host(&self) -> String {
        self.server.addr().to_string()
    }

    /// The faults to inject.
    pub fn faults(&self) -> &Faults {
        &self.gate.faults
    }

    /// Every request so far, in the order of their answers' beginnings.
    pub fn calls(&self) -> Vec<Call> {
        self.gate.lock().clone()
    }

    /// Forgets all calls so far.
    pub fn forget_calls(&self) {
        self.gate.lock().clear();
    }

    /// How often a layer or an image's configuration was sent.
    pub fn transfers(&self) -> usize {
        let sent = |call: &&Call| call.method == "GET" && call.path.contains("/blobs/") && call.status == 200;
        self.gate.lock().iter().filter(sent).count()
    }

    /// The digests of an image's layers, of a registry that lets everybody in.
    pub async fn layers(&self, reference: &str) -> Result<Vec<String>> {
        let name = reference.strip_prefix(&format!("{}/", self.host())).context("not of this registry")?;
        let (repository, tag) = name.rsplit_once(':').context("the reference has no tag")?;
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.gate.upstream.url());
        let accept = "application/vnd.docker.distribution.manifest.v2+json";
        let answer = self
            .gate
            .upstream
            .client()
            .get(url)
            .header(header::ACCEPT, accept)
            .timeout(DEADLINE)
            .send()
            .await?;
        let manifest: serde_json::Value = answer.error_for_status()?.json().await?;
        let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
        Ok(layers.iter().filter_map(|layer| Some(layer["digest"].as_str()?.to_owned())).collect())
    }

    /// Waits until this many answers are being sent.
    pub async fn wait_for_open_answers(&self, count: usize, deadline: Duration) -> Result<()> {
        let mut open = self.gate.open.subscribe();
        let reached = tokio::time::timeout(deadline, open.wait_for(|open| *open == count)).await;
        reached
            .with_context(|| format!("there were not {count} answers under way within {deadline:?}"))??;
        Ok(())
    }

    /// Pushes an image of the engine as `name` (`repository:tag`), and gives its full reference. The engine
    /// keeps it under this name too.
    pub async fn push(&self, engine: &Engine, image: &str, name: &str) -> Result<String> {
        let reference = format!("{}/{name}", self.host());
        let (repository, tag) = reference.rsplit_once(':').context("the name has no tag")?;
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        engine.api().tag_image(image, Some(options)).await.context("failed to tag the image")?;
        let credentials = self.closed.then(|| DockerCredentials {
            username: Some(USER.to_owned()),
            password: Some(PASSWORD.to_owned()),
            serveraddress: Some(self.host()),
            ..Default::default()
        });
        let options = PushImageOptionsBuilder::new().tag(tag).build();
        let push = engine
            .api()
            .push_image(repository, Some(options), credentials)
            .try_for_each(|_| async { Ok(()) });
        tokio::time::timeout(PUSH_DEADLINE, push)
            .await
            .context("the push took too long")?
            .with_context(|| format!("failed to push {reference}"))?;
        Ok(reference)
    }
}

fn configure(dir: &Path, address: SocketAddr, closed: bool) -> Result<std::path::PathBuf> {
    let passwords = dir.join("htpasswd");
    std::fs::write(&passwords, HTPASSWD).context("failed to write the registry's accounts")?;
    let mut text = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: {address}\n  relativeurls: true\n",
        dir.join("data").display()
    );
    if closed {
        writeln!(text, "auth:\n  htpasswd:\n    realm: test\n    path: {}", passwords.display())?;
    }
    let path = dir.join("config.yml");
    std::fs::write(&path, text).context("failed to configure the registry")?;
    Ok(path)
}

/// Whether the registry listens; false if somebody else has its port.
async fn listens(process: &mut Process, address: SocketAddr) -> Result<bool> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if !process.is_running() {
            if process.log().contains("address already in use") {
                return Ok(false);
            }
            bail!("the registry ended while starting:\n{}", process.tail(20));
        }
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Ok(true);
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the registry did not listen after {DEADLINE:?}:\n{}", process.tail(20));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Debug)]
struct Gate {
    upstream: Upstream,
    faults: Faults,
    calls: Mutex<Vec<Call>>,
    /// How many answers are being sent.
    open: watch::Sender<usize>,
}

/// An answer that is being sent.
struct Sending(Arc<Gate>);

impl Sending {
    fn begin(gate: &Arc<Gate>) -> Self {
        gate.open.send_modify(|open| *open += 1);
        Self(Arc::clone(gate))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Gate {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, request: &Seen, status: StatusCode) {
        self.lock().push(Call {
            method: request.method.clone(),
            path: request.path.clone(),
            status: status.as_u16(),
            user: request.user.clone(),
        });
    }
}

struct Seen {
    method: String,
    path: String,
    user: Option<String>,
}

async fn pass(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        user: user(request.headers()),
    };
    let strike = gate.faults.strike(&seen.method, &seen.path);
    let late = match strike {
        Some(strike) if strike.after_effect => Some(strike.action),
        Some(strike) => match strike.action {
            Action::Error { status, code, .. } => return refuse(&gate, &seen, status, &code),
            Action::DropConnection => {
                connection.cut();
                return StatusCode::BAD_GATEWAY.into_response();
            }
            Action::Delay(delay) => {
                tokio::time::sleep(delay).await;
                None
            }
        },
        None => None,
    };
    match gate.upstream.forward(request).await {
        Ok(answer) => {
            gate.record(&seen, answer.status());
            answered(&gate, answer, late)
        }
        Err(error) => {
            tracing::error!(%error, "the registry does not answer");
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
}

fn refuse(gate: &Gate, seen: &Seen, status: u16, code: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    gate.record(seen, status);
    let body = serde_json::json!({"errors": [{"code": code, "message": "injected by the test"}]});
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// Passes an answer on; what a fault does to it, it does after the first half of the body.
fn answered(gate: &Arc<Gate>, answer: reqwest::Response, late: Option<Action>) -> Response {
    let sending = Sending::begin(gate);
    let length = answer.content_length().unwrap_or(0);
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = match late {
        None => answer.bytes_stream().map_err(std::io::Error::other).boxed(),
        Some(action) => broken(answer, length / 2, action).boxed(),
    };
    let body = Body::from_stream(body.map(move |piece| {
        let _until_the_stream_ends = &sending;
        piece
    }));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn broken(
    answer: reqwest::Response,
    half: u64,
    action: Action,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    let mut left = usize::try_from(half).unwrap_or(usize::MAX);
    let mut struck = Some(action);
    let pieces = answer.bytes_stream().map_err(std::io::Error::other);
    pieces.flat_map(move |piece| {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => return stream::iter(vec![Err(error)]).boxed(),
        };
        if left >= piece.len() || struck.is_none() {
            left = left.saturating_sub(piece.len());
            return stream::iter(vec![Ok(piece)]).boxed();
        }
        let (first, rest) = (piece.slice(..left), piece.slice(left..));
        let after = match struck.take() {
            Some(Action::Delay(delay)) => stream::once(async move {
                tokio::time::sleep(delay).await;
                Ok(rest)
            })
            .boxed(),
            _ => stream::once(async { Err(std::io::Error::other("cut by the test")) }).boxed(),
        };
        stream::iter(vec![Ok(first)]).chain(after).boxed()
    })
}

/// The user that basic authentication names.
fn user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let pair = STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    Some(String::from_utf8_lossy(&pair).split(':').next()?.to_owned())
}
