//! The other end of the socket: `prefect-worker status`, `drain`, `healthcheck`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::server::sockets;
use super::{Error, LONGEST_REPLY, PATIENCE, Reply, Request, directory};
use crate::status::Status;

/// How long an answer may take: longer than the worker waits for server and engine.
const ANSWER: Duration = Duration::from_secs(10);

/// A worker that runs here.
#[derive(Debug)]
pub(crate) struct Chosen {
    path: PathBuf,
    /// What it said when it was found.
    pub(crate) status: Status,
}

/// The workers that run here, or those of a name.
///
/// # Errors
/// There is none.
pub(crate) async fn find(
    name: Option<&str>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Chosen>, Error> {
    let mut found = Vec::new();
    for directory in directory::candidates(environment) {
        if directory::is_private(&directory).is_err() {
            continue;
        }
        for path in sockets(&directory) {
            // Sockets without a worker are left by processes that were killed.
            if let Ok((Reply::Status(status), _)) = ask(&path, &Request::Status).await
                && name.is_none_or(|name| name == status.worker)
            {
                found.push(Chosen { path, status: *status });
            }
        }
    }
    if found.is_empty() {
        return Err(Error::NotFound { name: name.map(str::to_owned) });
    }
    Ok(found)
}

impl Chosen {
    /// The only one of those found.
    ///
    /// # Errors
    /// There are several.
    pub(crate) fn only(mut found: Vec<Self>) -> Result<Self, Error> {
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (last, _) => {
                let names =
                    found.iter().chain(&last).map(|chosen| format!("{:?}", chosen.status.worker)).collect();
                Err(Error::Ambiguous { names })
            }
        }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// The worker does not answer, or does not do it.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Reply, Error> {
        self.ask_and_stay(request).await.map(|(reply, _)| reply)
    }

    /// Asks for an end.
    ///
    /// # Errors
    /// The worker does not answer, or does not do it.
    pub(crate) async fn ask_to_end(&self, request: &Request) -> Result<Ending, Error> {
        let (_, stream) = self.ask_and_stay(request).await?;
        Ok(Ending { worker: self.status.worker.clone(), stream })
    }

    async fn ask_and_stay(&self, request: &Request) -> Result<(Reply, UnixStream), Error> {
        let talk = |problem: String| Error::Talk { path: self.path.clone(), problem };
        match ask(&self.path, request).await.map_err(talk)? {
            (Reply::Error(problem), _) => Err(talk(problem)),
            reply => Ok(reply),
        }
    }
}

/// A worker that was asked to end.
#[derive(Debug)]
pub(crate) struct Ending {
    worker: String,
    stream: UnixStream,
}

impl Ending {
    /// Waits for the end of its process, at most so long.
    ///
    /// # Errors
    /// It is still there.
    pub(crate) async fn wait(mut self, deadline: Option<Duration>) -> Result<(), Error> {
        let mut rest = [0];
        // The worker says nothing more: whatever comes is its end.
        let end = self.stream.read(&mut rest);
        let Some(deadline) = deadline else {
            drop(end.await);
            return Ok(());
        };
        match tokio::time::timeout(deadline, end).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::StillThere { name: self.worker, seconds: deadline.as_secs() }),
        }
    }
}

async fn ask(path: &Path, request: &Request) -> Result<(Reply, UnixStream), String> {
    let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    line.push(b'\n');
    let exchange = async {
        let mut stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        tokio::time::timeout(PATIENCE, stream.write_all(&line))
            .await
            .map_err(|_| "it does not listen".to_owned())?
            .map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new((&mut stream).take(LONGEST_REPLY));
        reader.read_until(b'\n', &mut answer).await.map_err(|error| error.to_string())?;
        let reply = serde_json::from_slice(&answer)
            .map_err(|error| format!("its answer is not understood ({error}); is it of another version?"))?;
        Ok((reply, stream))
    };
    tokio::time::timeout(ANSWER, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
}
