//! The way to a server for containers that have no network.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

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
