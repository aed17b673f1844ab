//! The worker's end of the socket.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Error, LONGEST_REQUEST, PATIENCE, Reply, Request, ShutdownMode, ShutdownRequest, directory};
use crate::health::Health;
use crate::status::StatusBoard;

/// Connections at a time.
const CONNECTIONS: usize = 32;

/// A control socket that is open. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the control socket was not removed");
        }
    }
}

impl Control {
    /// Opens the socket of this process, and removes those of processes that are no more.
    ///
    /// # Errors
    /// There is no private directory for it.
    pub(crate) async fn listen(
        status: &StatusBoard,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let directory = directory::make(&directory::candidates(environment))?;
        remove_stale(&directory).await;
        let path = directory.join(format!("{}.sock", status.instance().simple()));
        let listen = |source| Error::Listen { path: path.clone(), source };
        let listener = UnixListener::bind(&path).map_err(listen)?;
        let control = Self { listener, path: path.clone() };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(listen)?;
        Ok(control)
    }

    /// Answers until `stop`. Requests for an end go to `shutdown`.
    pub(crate) async fn serve(
        self,
        status: StatusBoard,
        health: Health,
        shutdown: mpsc::Sender<ShutdownRequest>,
        stop: CancellationToken,
    ) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the control socket failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let (status, health, shutdown) = (status.clone(), health.clone(), shutdown.clone());
            connections.spawn(async move {
                answer(stream, &status, &health, &shutdown).await;
                drop(slot);
            });
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    status: &StatusBoard,
    health: &Health,
    shutdown: &mpsc::Sender<ShutdownRequest>,
) {
    let reply = match tokio::time::timeout(PATIENCE, read(&mut stream)).await {
        Ok(Ok(request)) => reply(request, status, health, shutdown).await,
        Ok(Err(problem)) => Reply::Error(problem),
        Err(_) => Reply::Error(format!("no request came within {} s", PATIENCE.as_secs())),
    };
    let Ok(mut line) = serde_json::to_vec(&reply) else { return };
    line.push(b'\n');
    let written = tokio::time::timeout(PATIENCE, stream.write_all(&line)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::debug!("nobody took the answer on the control socket");
        return;
    }
    if reply == Reply::Accepted {
        // The other end learns by the end of the connection that the process has ended. It says nothing more;
        // when it leaves, so do we.
        let mut end = [0];
        drop(stream.read(&mut end).await);
    }
}

async fn read(stream: &mut UnixStream) -> Result<Request, String> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(LONGEST_REQUEST));
    reader.read_until(b'\n', &mut line).await.map_err(|error| error.to_string())?;
    if line.last() != Some(&b'\n') {
        return Err(format!("a request is one line of at most {LONGEST_REQUEST} bytes"));
    }
    serde_json::from_slice(&line).map_err(|error| format!("this is no request: {error}"))
}

async fn reply(
    request: Request,
    status: &StatusBoard,
    health: &Health,
    shutdown: &mpsc::Sender<ShutdownRequest>,
) -> Reply {
    let wanted = match request {
        Request::Status => return Reply::Status(Box::new(status.snapshot())),
        Request::Health => return Reply::Health(health.well().await),
        Request::Drain { deadline_seconds } => {
            ShutdownRequest { mode: ShutdownMode::Drain, deadline: deadline_seconds.map(Duration::from_secs) }
        }
        Request::Stop => ShutdownRequest { mode: ShutdownMode::Stop, deadline: None },
    };
    tracing::info!(?wanted, "asked to end through the control socket");
    match shutdown.try_send(wanted) {
        Ok(()) => Reply::Accepted,
        Err(_) => Reply::Error("the worker is about to end already".to_owned()),
    }
}

/// Removes sockets behind which nobody is any more.
async fn remove_stale(directory: &Path) {
    for path in sockets(directory) {
        if let Err(error) = UnixStream::connect(&path).await
            && error.kind() == std::io::ErrorKind::ConnectionRefused
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::debug!(path = %path.display(), %error, "a stale control socket was not removed");
        }
    }
}

/// The sockets of a directory, in the order of their names.
pub(super) fn sockets(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    found.sort();
    found
}
