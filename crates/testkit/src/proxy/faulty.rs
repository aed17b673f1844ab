//! A proxy that fails as networks and gateways do.
//!
//! HTTP requests pass a gate that injects [`Faults`], asked for with the HTTP method as `what` and the path as subject;
//! one that drops the connection after the effect loses the whole answer. Requests for a WebSocket meet the same
//! faults; a socket that is open is beyond them. All connections can be cut at once, and fall silent for ever.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::relay::{self, Acceptor};
use crate::faults::{Action, Faults};
use crate::server::{Connection, Server};
use crate::upstream::Upstream;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A head that is longer is none that we know.
const HEAD_LIMIT: usize = 64 * 1024;

/// A proxy on a free port of the loopback interface. Dropping it cuts its connections.
#[derive(Debug)]
pub struct FaultyProxy {
    acceptor: Acceptor,
    line: Arc<Line>,
    _gate: Server,
}

/// What all connections share.
#[derive(Debug)]
struct Line {
    upstream: SocketAddr,
    faults: Faults,
    /// How often all connections were cut.
    cuts: watch::Sender<u64>,
    silent: watch::Sender<bool>,
}

impl FaultyProxy {
    /// Starts a proxy in front of the server at `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let line = Arc::new(Line {
            upstream,
            faults: Faults::default(),
            cuts: watch::Sender::default(),
            silent: watch::Sender::default(),
        });
        let passing = (Arc::clone(&line), Upstream::new(format!("http://{upstream}"))?);
        let gate = Server::start(LOOPBACK, 0, Router::new().fallback(pass).with_state(passing)).await?;
        let (front, http) = (Arc::clone(&line), gate.addr());
        let acceptor = Acceptor::start(move |client| connection(client, Arc::clone(&front), http)).await?;
        Ok(Self { acceptor, line, _gate: gate })
    }

    /// The address that is listened on.
    pub fn addr(&self) -> SocketAddr {
        self.acceptor.addr()
    }

    /// The faults that requests meet.
    pub fn faults(&self) -> &Faults {
        &self.line.faults
    }

    /// Cuts all connections that there are, those that have fallen silent too.
    pub fn cut(&self) {
        self.line.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on, or no longer: connections are taken, but nothing passes, on those that there are neither. What has
    /// fallen silent stays so: whoever waits there waits for ever.
    pub fn fall_silent(&self, silent: bool) {
        self.line.silent.send_if_modified(|now| std::mem::replace(now, silent) != silent);
    }
}

async fn connection(mut client: TcpStream, line: Arc<Line>, http: SocketAddr) {
    let (mut cuts, mut silent) = (line.cuts.subscribe(), line.silent.subscribe());
    let served = async {
        if !*silent.borrow_and_update() {
            tokio::select! {
                biased;
                // A silence has begun, even if it is over already.
                Ok(()) = silent.changed() => {}
                () = serve(&mut client, &line, http) => return,
            }
        }
        swallow(&mut client).await;
    };
    tokio::select! {
        _ = cuts.changed() => {}
        () = served => {}
    }
}

/// Takes whatever comes, and says nothing.
async fn swallow(client: &mut TcpStream) {
    if let Err(error) = tokio::io::copy(client, &mut tokio::io::sink()).await {
        tracing::debug!(%error, "a connection that had fallen silent broke");
    }
}

/// Passes a connection on: to the gate, or, if it is to become a WebSocket, to the server itself.
async fn serve(client: &mut TcpStream, line: &Line, http: SocketAddr) {
    let Some(head) = read_head(client).await else { return };
    let text = String::from_utf8_lossy(&head).to_lowercase();
    let target = if text.contains("\r\nupgrade: websocket\r\n") {
        if !admitted(client, line, &head).await {
            return;
        }
        line.upstream
    } else {
        http
    };
    let Some(mut server) = relay::connect(target).await else { return };
    let passed = async {
        server.write_all(&head).await?;
        copy_bidirectional(client, &mut server).await
    };
    if let Err(error) = passed.await {
        tracing::debug!(%error, "a connection broke");
    }
}

/// What comes until the end of the first request's head, and perhaps a bit more.
async fn read_head(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = client.read_buf(&mut head).await.ok()?;
        if read == 0 || head.len() > HEAD_LIMIT {
            return None;
        }
    }
    Some(head)
}

/// Whether a WebSocket may be opened. If not, its client has been told.
async fn admitted(client: &mut TcpStream, line: &Line, head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head);
    let mut words = head.split([' ', '?']);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match line.faults.strike(method, path).map(|strike| strike.action) {
        None => true,
        Some(Action::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            true
        }
        Some(Action::DropConnection) => false,
        Some(Action::Error { status, retry_after, .. }) => {
            let again = retry_after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
            let refusal =
                format!("HTTP/1.1 {status} Refused\r\n{again}content-length: 0\r\nconnection: close\r\n\r\n");
            if let Err(error) = client.write_all(refusal.as_bytes()).await {
                tracing::debug!(%error, "nobody reads why a socket was refused");
            }
            false
        }
    }
}

/// Passes one HTTP request on, unless a fault strikes.
async fn pass(
    State((line, upstream)): State<(Arc<Line>, Upstream)>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let strike = line.faults.strike(request.method().as_str(), request.uri().path());
    let (before, after) = match strike {
        Some(strike) if strike.after_effect => (None, Some(strike.action)),
        strike => (strike.map(|strike| strike.action), None),
    };
    if let Some(answer) = meet(before, &connection).await {
        return answer;
    }
    let answer = match upstream.forward(request).await {
        Ok(answer) => answer,
        Err(error) => {
            // A server that is away closes the connection, as it would without us.
            tracing::debug!(%error, "the server does not answer");
            return cut(&connection);
        }
    };
    if let Some(answer) = meet(after, &connection).await {
        return answer;
    }
    let (status, headers) = (answer.status(), answer.headers().clone());
    (status, headers, Body::from_stream(answer.bytes_stream())).into_response()
}

/// What is answered instead of the proper reply, if anything is.
async fn meet(action: Option<Action>, connection: &Connection) -> Option<Response> {
    match action? {
        Action::Delay(delay) => {
            tokio::time::sleep(delay).await;
            None
        }
        Action::DropConnection => Some(cut(connection)),
        Action::Error { status, retry_after, .. } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            let mut answer = status.into_response();
            if let Some(seconds) = retry_after {
                answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            Some(answer)
        }
    }
}

/// Closes the connection; the answer that is given reaches nobody.
fn cut(connection: &Connection) -> Response {
    connection.cut();
    StatusCode::BAD_GATEWAY.into_response()
}
