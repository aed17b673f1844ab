//! Follows one container to its end, whatever happens to the connection meanwhile.

use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{InspectContainerOptions, LogsOptions, WaitContainerOptions};
use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::super::{Outcome, OutputSink};
use super::engine::{Engine, failure};
use super::labels;

/// A wait is renewed after this long, so that a connection that died silently is noticed.
const WAIT_RENEWAL: Duration = Duration::from_mins(1);
/// How long output may still come after the end.
const OUTPUT_RESIDUE: Duration = Duration::from_secs(5);
const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// Waits for the end of a container; its output goes to `output` meanwhile.
pub(super) async fn until_end(engine: &Engine, id: &str, output: OutputSink) -> Outcome {
    let mut pause = Duration::from_millis(500);
    let mut since = 0;
    loop {
        match attempt(engine, id, &output, since).await {
            Ok(outcome) => return outcome,
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                return Outcome::Vanished;
            }
            Err(error) => {
                tracing::warn!(
                    container = id,
                    error = failure(&error),
                    "lost sight of the container, trying again"
                );
                since = i32::try_from(Timestamp::now().as_second()).unwrap_or(0);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_MAX);
            }
        }
    }
}

async fn attempt(engine: &Engine, id: &str, output: &OutputSink, since: i32) -> Result<Outcome, Error> {
    let quiet = labels::has(&inspect(engine, id).await?, labels::QUIET);

    let follow = async {
        if !quiet {
            follow(engine, id, output, since).await;
        }
    };
    let mut follow = std::pin::pin!(follow);
    let mut following = true;
    let code = {
        let mut exit = std::pin::pin!(exit(engine, id));
        loop {
            tokio::select! {
                code = &mut exit => break code?,
                () = &mut follow, if following => following = false,
            }
        }
    };
    if following && tokio::time::timeout(OUTPUT_RESIDUE, follow).await.is_err() {
        tracing::debug!(container = id, "gave up on the rest of the output");
    }
    // The state tells more than the wait: whether memory ran out, what the engine says.
    match inspect(engine, id).await {
        Ok(last) => Ok(outcome(code, last.state)),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(outcome(code, None)),
        Err(error) => Err(error),
    }
}

fn outcome(waited: Option<i64>, state: Option<ContainerState>) -> Outcome {
    let state = state.unwrap_or_default();
    match state.exit_code.or(waited) {
        Some(code) => Outcome::Exited {
            code,
            out_of_memory: state.oom_killed.unwrap_or(false),
            error: state.error.filter(|error| !error.is_empty()),
        },
        None => Outcome::Vanished,
    }
}

/// Waits until the container does not run, and gives its exit code if it can be known.
async fn exit(engine: &Engine, id: &str) -> Result<Option<i64>, Error> {
    loop {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut wait = std::pin::pin!(engine.docker.wait_container(id, Some(options)));
        match tokio::time::timeout(WAIT_RENEWAL, wait.next()).await {
            Ok(Some(Ok(answer))) => return Ok(Some(answer.status_code)),
            Ok(Some(Err(Error::DockerContainerWaitError { code, .. }))) => return Ok(Some(code)),
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => return Ok(None),
            Err(_) => {
                inspect(engine, id).await?;
            }
        }
    }
}

/// Passes the output on until it ends or nobody listens.
async fn follow(engine: &Engine, id: &str, output: &OutputSink, since: i32) {
    let options = LogsOptions {
        follow: true,
        stdout: true,
        stderr: true,
        since,
        tail: "all".to_owned(),
        ..Default::default()
    };
    let mut logs = engine.docker.logs(id, Some(options));
    while let Some(chunk) = logs.next().await {
        match chunk {
            Ok(chunk) => {
                if output.send(chunk.into_bytes().to_vec()).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(
                    container = id,
                    error = failure(&error),
                    "output of the container is not streamed"
                );
                return;
            }
        }
    }
}

async fn inspect(engine: &Engine, id: &str) -> Result<ContainerInspectResponse, Error> {
    engine.docker.inspect_container(id, None::<InspectContainerOptions>).await
}
