//! A proxy that counts: HTTP requests by what they ask for, and WebSocket frames.
//!
//! It passes every byte on unchanged, and reads along; what it cannot read it passes on uncounted.

mod meter;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

use meter::{Meter, Seen};

/// What went through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// HTTP requests by method and path; ids in paths are written `:id`.
    pub requests: BTreeMap<String, u64>,
    /// WebSocket frames from client to server, pings and pongs included.
    pub frames_sent: u64,
    /// WebSocket frames from server to client, pings and pongs included.
    pub frames_received: u64,
}

impl Traffic {
    /// All HTTP requests, those that open WebSockets included.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |name: &String| earlier.requests.get(name).copied().unwrap_or_default();
        let requests = self.requests.iter().map(|(name, count)| (name.clone(), count - before(name)));
        Self {
            requests: requests.filter(|(_, count)| *count > 0).collect(),
            frames_sent: self.frames_sent - earlier.frames_sent,
            frames_received: self.frames_received - earlier.frames_received,
        }
    }
}

/// A proxy on a free port of the loopback interface. Dropping it cuts its connections.
#[derive(Debug)]
pub struct CountingProxy {
    addr: SocketAddr,
    traffic: Arc<Mutex<Traffic>>,
    _task: JoinSet<()>,
}

impl CountingProxy {
    /// Starts a proxy in front of the server at `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("failed to listen on a free port")?;
        let addr = listener.local_addr().context("failed to read the address of the listener")?;
        let traffic = Arc::new(Mutex::new(Traffic::default()));
        let mut task = JoinSet::new();
        task.spawn(accept(listener, upstream, Arc::clone(&traffic)));
        Ok(Self { addr, traffic, _task: task })
    }

    /// The address that is listened on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What went through so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A socket in a directory that leads to a server: for containers that have no network. Dropping it cuts its
/// connections.
#[derive(Debug)]
pub struct Forwarder {
    _task: JoinSet<()>,
}

impl Forwarder {
    /// Listens on the new socket `path`, which everybody may use, and passes connections on to `upstream`.
    pub fn start(path: &Path, upstream: SocketAddr) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let listener = UnixListener::bind(path);
        let listener = listener.with_context(|| format!("failed to listen on {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((client, _)) = listener.accept() => { connections.spawn(forward(client, upstream)); }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { _task: task })
    }
}

async fn forward(mut client: UnixStream, upstream: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        tracing::debug!(%error, "connection broke");
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, traffic: Arc<Mutex<Traffic>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(connection(client, upstream, Arc::clone(&traffic)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Passes one connection on. A server that is away closes it, as it would without us.
async fn connection(client: TcpStream, upstream: SocketAddr, traffic: Arc<Mutex<Traffic>>) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    // Small frames must not wait for each other, or the proxy would be measured too.
    for stream in [&client, &server] {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let count = |seen: Seen, sent: bool| {
        let mut traffic = traffic.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Seen::Request(name) => *traffic.requests.entry(name).or_default() += 1,
            Seen::Frame if sent => traffic.frames_sent += 1,
            Seen::Frame => traffic.frames_received += 1,
        }
    };
    tokio::join!(
        pass(from_client, to_server, Meter::of_client(), |seen| count(seen, true)),
        pass(from_server, to_client, Meter::of_server(), |seen| count(seen, false)),
    );
}

/// Passes one direction on until its end, which it passes on too.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut meter: Meter,
    count: impl Fn(Seen),
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..length) else { break };
        meter.feed(bytes, &count);
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    if let Err(error) = to.shutdown().await {
        tracing::debug!(%error, "connection was closed already");
    }
}
