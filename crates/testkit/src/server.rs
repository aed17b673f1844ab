//! The HTTP server below both simulators: a free port, connections that can be cut, an orderly end.

use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long requests under way may take to end when a server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// The connection a request came on; cutting it ends the conversation without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Option<Arc<TcpStream>>);

impl Connection {
    /// Closes both directions of the socket at once.
    pub(crate) fn cut(&self) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.shutdown(Shutdown::Both)
        {
            tracing::debug!(%error, "connection was closed already");
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        // A second descriptor of the same socket: shutting it down is seen by the one hyper writes to.
        Self(stream.io().as_fd().try_clone_to_owned().ok().map(|fd| Arc::new(TcpStream::from(fd))))
    }
}

/// A running HTTP server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds `host:port` (port 0 takes a free one) and serves `router` on it.
    pub async fn start(host: IpAddr, port: u16, router: Router) -> Result<Self> {
        let listener = TcpListener::bind((host, port))
            .await
            .with_context(|| format!("failed to listen on {host}:{port}"))?;
        let addr = listener.local_addr().context("failed to read the address of the listener")?;
        let shutdown = CancellationToken::new();
        let ended = shutdown.clone();
        let service = router.into_make_service_with_connect_info::<Connection>();
        let task = tokio::spawn(async move {
            let serving = axum::serve(listener, service).with_graceful_shutdown(ended.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "server ended");
            }
        });
        Ok(Self { addr, shutdown, task: Some(task) })
    }

    /// The address that is listened on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address as a URL; the loopback address when all interfaces are bound.
    pub fn url(&self) -> String {
        let ip = if self.addr.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.addr.ip() };
        format!("http://{}", SocketAddr::new(ip, self.addr.port()))
    }

    /// Stops accepting, lets requests under way end within a few seconds, and frees the port.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(mut task) = self.task.take()
            && tokio::time::timeout(DRAIN, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
