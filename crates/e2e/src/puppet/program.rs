//! The program itself: as small as a flow run can be, so that a container of it costs next to nothing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use prefect_api::state::StateType;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::witness::Witness;
use super::{Behaviour, DIRECTORY, End, SOCKET, WITNESSES};
use crate::say;

/// Pause between two tries to reach a server that is away.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(20);
/// Tries after which a puppet gives a report up: a server is never away for so long.
const TRIES: u32 = 600;
/// What an ended process says after SIGTERM.
const TERMINATED: u8 = 143;
/// Mebibytes that a puppet takes at most, and the code that it exits with when nobody minds.
const MEMORY_LIMIT: usize = 256;
const UNLIMITED: u8 = 99;

#[derive(Debug, Parser)]
#[command(name = "ferryman-puppet", about = "A flow run that does what it is told.")]
struct Cli {
    #[command(flatten)]
    behaviour: Behaviour,
}

/// The program.
pub fn main() -> ExitCode {
    let Cli { behaviour } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .context("failed to start the runtime")
        .and_then(|runtime| runtime.block_on(async { Puppet::of_environment(behaviour)?.run().await }));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Where the server is.
enum Server {
    /// Host and port.
    Address(String),
    /// A socket that leads to it.
    Socket(PathBuf),
}

struct Puppet {
    behaviour: Behaviour,
    run: String,
    server: Server,
    /// The path of the server's API.
    path: String,
    witnesses: Option<PathBuf>,
}

impl Puppet {
    fn of_environment(behaviour: Behaviour) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let url = variable("FERRYMAN_PUPPET_API").or_else(|_| variable("PREFECT_API_URL"))?;
        let address = url.strip_prefix("http://").with_context(|| format!("{url} is no http address"))?;
        let (server, path) = address.split_once('/').unwrap_or((address, ""));
        let directory = variable("FERRYMAN_PUPPET_DIRECTORY").map_or(DIRECTORY.into(), PathBuf::from);
        let (socket, witnesses) = (directory.join(SOCKET), directory.join(WITNESSES));
        let server =
            if socket.exists() { Server::Socket(socket) } else { Server::Address(server.to_owned()) };
        Ok(Self {
            behaviour,
            run: variable("PREFECT__FLOW_RUN_ID")?,
            server,
            path: format!("/{}", path.trim_end_matches('/')),
            witnesses: witnesses.is_dir().then_some(witnesses),
        })
    }

    async fn run(&self) -> Result<u8> {
        let mut terminate = signal(SignalKind::terminate())?;
        self.witness("start")?;
        let work = self.work();
        tokio::select! {
            code = work => code,
            _ = terminate.recv(), if !self.behaviour.deaf => {
                self.witness("terminated")?;
                Ok(TERMINATED)
            }
        }
    }

    async fn work(&self) -> Result<u8> {
        if self.behaviour.reports {
            let state = self.propose(StateType::Running).await?;
            if state != StateType::Running.as_str() {
                self.witness(&format!("refused {state}"))?;
                return Ok(0);
            }
            self.witness("running")?;
        }
        let work = sleep(Duration::from_millis(self.behaviour.millis));
        tokio::select! {
            () = work => {}
            () = self.cancellation(), if self.behaviour.listens => {
                self.report(StateType::Cancelled).await?;
                self.witness("end cancelled")?;
                return Ok(0);
            }
        }
        let code = match self.behaviour.end {
            End::Exit => self.behaviour.code,
            End::Complete => {
                self.report(StateType::Completed).await?;
                0
            }
            End::Fail => {
                self.report(StateType::Failed).await?;
                1
            }
            End::Memory => {
                self.witness("end of memory")?;
                take_memory()
            }
            End::Abort => {
                self.witness("end by signal")?;
                std::process::abort()
            }
        };
        self.witness(&format!("end {code}"))?;
        Ok(code)
    }

    async fn report(&self, state: StateType) -> Result<()> {
        let entered = self.propose(state).await?;
        let word = if entered == state.as_str() { "reported" } else { "refused" };
        self.witness(&format!("{word} {entered}"))
    }

    /// Proposes a state until the server has answered, and gives the state that the run is in then.
    async fn propose(&self, state: StateType) -> Result<String> {
        let body = json!({"force": false, "state": {"type": state, "name": state.default_name(),
            "state_details": {"transition_id": uuid::Uuid::new_v4()}}});
        for _ in 0..TRIES {
            let answer = self.request("POST", "/set_state", &body.to_string()).await;
            if let Ok(answer) = answer
                && answer["status"] != "WAIT"
            {
                return Ok(answer["state"]["type"].as_str().unwrap_or("none").to_owned());
            }
            sleep(PAUSE).await;
        }
        bail!("the server never answered")
    }

    /// Resolves when the run is to be cancelled.
    async fn cancellation(&self) {
        loop {
            sleep(Duration::from_millis(500)).await;
            if let Ok(run) = self.request("GET", "", "").await
                && run["state_type"] == StateType::Cancelling.as_str()
            {
                return;
            }
        }
    }

    /// One request about the run. Errors are connections that fail and answers that are none.
    async fn request(&self, method: &str, suffix: &str, body: &str) -> Result<Value> {
        let request = format!(
            "{method} {}/flow_runs/{}{suffix} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\
             User-Agent: prefect/3.7.2 (API 0.8.4)\r\nX-PREFECT-API-VERSION: 0.8.4\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.path,
            self.run,
            body.len()
        );
        let exchange = async {
            match &self.server {
                Server::Address(address) => exchange(TcpStream::connect(address).await?, &request).await,
                Server::Socket(path) => exchange(UnixStream::connect(path).await?, &request).await,
            }
        };
        let answer = timeout(REQUEST, exchange).await.context("no answer in time")??;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            bail!("the server answered {status}");
        }
        Ok(serde_json::from_str(body)?)
    }

    fn witness(&self, event: &str) -> Result<()> {
        let Some(directory) = &self.witnesses else { return Ok(()) };
        Witness::write(directory, &self.run, event)
    }
}

/// Sends a request and reads all of the answer.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Takes memory until the kernel ends it; gives up where nothing limits it.
fn take_memory() -> u8 {
    let mut taken = Vec::new();
    while taken.len() < MEMORY_LIMIT {
        taken.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
    UNLIMITED
}
