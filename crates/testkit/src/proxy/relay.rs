//! What our own proxies have in common: connections are accepted, each is served by a task of its own, and bytes go
//! on as they came.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Accepts connections on a free port of the loopback interface. Dropping it cuts them.
#[derive(Debug)]
pub(super) struct Acceptor {
    addr: SocketAddr,
    _task: JoinSet<()>,
}

impl Acceptor {
    /// Has each connection served by `serve`.
    pub(super) async fn start<R>(serve: impl Fn(TcpStream) -> R + Send + 'static) -> Result<Self>
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("failed to listen on a free port")?;
        let addr = listener.local_addr().context("failed to read the address of the listener")?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((client, _)) = accepted {
                            without_delay(&client);
                            connections.spawn(serve(client));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { addr, _task: task })
    }

    /// The address that is listened on.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// A connection to the server behind a proxy; `None` if it is away.
pub(super) async fn connect(upstream: SocketAddr) -> Option<TcpStream> {
    let server = TcpStream::connect(upstream).await.ok()?;
    without_delay(&server);
    Some(server)
}

/// Small frames must not wait for each other, or the proxy would be measured too.
fn without_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
}

/// Passes one direction on until its end, which it passes on too; `read_along` sees every piece.
pub(super) async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut read_along: impl FnMut(&[u8]),
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..length) else { break };
        read_along(bytes);
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    if let Err(error) = to.shutdown().await {
        tracing::debug!(%error, "connection was closed already");
    }
}
