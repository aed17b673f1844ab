//! Follows one container to its end, whatever happens to the connection meanwhile.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{InspectContainerOptions, LogsOptions, StatsOptions, WaitContainerOptions};
use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::super::{Memory, Outcome, OutputSink, Piece};
use super::engine::{Engine, failure};

/// A wait is renewed after this long, so that a connection that died silently is noticed.
const WAIT_RENEWAL: Duration = Duration::from_mins(1);
/// How long output may still come after the end.
const OUTPUT_RESIDUE: Duration = Duration::from_secs(5);
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// The most of the last output that is read.
const TAIL_BYTES: usize = 64 * 1024;

/// Time between two looks at the memory of a container that has a limit.
const MEMORY_LOOK: Duration = Duration::from_secs(10);

/// Waits for the end of a container; its output goes to `output` meanwhile.
pub(super) async fn until_end(engine: &Engine, id: &str, mut output: Option<OutputSink>) -> Outcome {
    let mut pause = Duration::from_millis(500);
    let mut memory = Memory::default();
    loop {
        match attempt(engine, id, &mut output, &mut memory).await {
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
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_MAX);
            }
        }
    }
}

/// One connection's time. `output` remembers what came, so that the next attempt goes on from there.
async fn attempt(
    engine: &Engine,
    id: &str,
    output: &mut Option<OutputSink>,
    memory: &mut Memory,
) -> Result<Outcome, Error> {
    let container = inspect(engine, id).await?;
    let limit =
        container.host_config.and_then(|host| host.memory).and_then(|limit| u64::try_from(limit).ok());
    memory.limit = limit.filter(|limit| *limit > 0);

    let code = {
        let mut follow = std::pin::pin!(async {
            if let Some(output) = output {
                follow(engine, id, output).await;
            }
        });
        let mut following = true;
        let mut looks = std::pin::pin!(look_at_memory(engine, id, memory));
        let mut looking = true;
        let mut exit = std::pin::pin!(exit(engine, id));
        let code = loop {
            tokio::select! {
                code = &mut exit => break code?,
                () = &mut follow, if following => following = false,
                () = &mut looks, if looking => looking = false,
            }
        };
        if following && tokio::time::timeout(OUTPUT_RESIDUE, follow).await.is_err() {
            tracing::debug!(container = id, "gave up on the rest of the output");
        }
        code
    };
    // The state tells more than the wait: whether memory ran out, what the engine says.
    match inspect(engine, id).await {
        Ok(last) => Ok(outcome(code, last.state, *memory)),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(outcome(code, None, *memory)),
        Err(error) => Err(error),
    }
}

fn outcome(waited: Option<i64>, state: Option<ContainerState>, memory: Memory) -> Outcome {
    let state = state.unwrap_or_default();
    match state.exit_code.or(waited) {
        Some(code) => Outcome::Exited {
            code,
            out_of_memory: state.oom_killed.unwrap_or(false),
            error: state.error.filter(|error| !error.is_empty()),
            memory,
        },
        None => Outcome::Vanished,
    }
}

/// Looks now and then how much memory a container with a limit uses: afterwards nobody can tell.
async fn look_at_memory(engine: &Engine, id: &str, memory: &mut Memory) {
    if memory.limit.is_none() {
        return;
    }
    loop {
        let options = StatsOptions { stream: false, one_shot: true };
        let mut stats = std::pin::pin!(engine.docker.stats(id, Some(options)));
        if let Some(Ok(stats)) = stats.next().await
            && let Some(seen) = stats.memory_stats
        {
            // Engines on cgroup v1 know the highest use, others only the present one.
            memory.peak = memory.peak.max(seen.max_usage).max(seen.usage);
        }
        tokio::time::sleep(MEMORY_LOOK).await;
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
///
/// The engine may end the stream of a container that has just ended before it has sent everything; a second
/// reading, which does not follow, brings the rest.
async fn follow(engine: &Engine, id: &str, output: &mut OutputSink) {
    let mut seen = Seen::default();
    for following in [true, false] {
        if !pass_on(engine, id, output, &mut seen, following).await {
            return;
        }
    }
}

/// The times of the last pieces of both streams. Within one they only grow; between them they may overtake
/// each other.
#[derive(Debug, Default)]
struct Seen {
    stdout: Option<Timestamp>,
    stderr: Option<Timestamp>,
}

/// Reads the output once; tells whether there is any use in reading on.
async fn pass_on(engine: &Engine, id: &str, output: &mut OutputSink, seen: &mut Seen, follow: bool) -> bool {
    let began = output.after;
    let since = if follow { began } else { [seen.stdout, seen.stderr].into_iter().flatten().min().or(began) };
    let options = LogsOptions {
        follow,
        stdout: true,
        stderr: true,
        // Whole seconds only.
        since: since.map_or(0, |since| i32::try_from(since.as_second()).unwrap_or(0)),
        timestamps: true,
        tail: "all".to_owned(),
        ..Default::default()
    };
    let mut logs = engine.docker.logs(id, Some(options));
    // Where the engine splits a very long line, only its first part bears a time.
    let mut at = began.unwrap_or_else(Timestamp::now);
    let mut wanted = true;
    while let Some(chunk) = logs.next().await {
        match chunk {
            Ok(chunk) => {
                let last = if matches!(chunk, LogOutput::StdErr { .. }) {
                    &mut seen.stderr
                } else {
                    &mut seen.stdout
                };
                let chunk = chunk.into_bytes();
                let (stamp, bytes) = split_stamp(&chunk);
                if let Some(stamp) = stamp {
                    at = stamp;
                    wanted = began.filter(|_| follow).is_none_or(|began| stamp > began)
                        && (follow || last.or(began).is_none_or(|last| stamp > last));
                }
                if !wanted {
                    continue;
                }
                if output.pieces.send(Piece { at, bytes: bytes.to_vec() }).await.is_err() {
                    return false;
                }
                *last = (*last).max(Some(at));
                output.after = output.after.max(Some(at));
            }
            Err(error) => {
                tracing::warn!(
                    container = id,
                    error = failure(&error),
                    "output of the container is not streamed"
                );
                return false;
            }
        }
    }
    true
}

/// The time that the engine put before a piece of output, and the piece.
fn split_stamp(chunk: &[u8]) -> (Option<Timestamp>, &[u8]) {
    let Some(space) = chunk.iter().take(40).position(|byte| *byte == b' ') else { return (None, chunk) };
    let (stamp, rest) = chunk.split_at(space);
    match std::str::from_utf8(stamp).ok().and_then(|stamp| stamp.parse().ok()) {
        Some(stamp) => (Some(stamp), rest.get(1..).unwrap_or_default()),
        None => (None, chunk),
    }
}

/// The last lines of the output.
pub(super) async fn tail(engine: &Engine, id: &str, lines: usize) -> Vec<String> {
    let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), ..Default::default() };
    let mut logs = engine.docker.logs(id, Some(options));
    let mut text = Vec::new();
    while let Some(Ok(chunk)) = logs.next().await {
        text.extend_from_slice(&chunk.into_bytes());
        if text.len() > TAIL_BYTES {
            text.drain(..text.len() - TAIL_BYTES);
        }
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

async fn inspect(engine: &Engine, id: &str) -> Result<ContainerInspectResponse, Error> {
    engine.docker.inspect_container(id, None::<InspectContainerOptions>).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_time_is_taken_off_the_output() {
        let (stamp, rest) = split_stamp(b"2026-11-22T04:42:18.123456789Z a line\n");
        assert_eq!(stamp.unwrap().to_string(), "2026-11-22T04:42:18.123456789Z");
        assert_eq!(rest, b"a line\n");
        for without in [&b"no stamp here\n"[..], b"", b"\xff \xff"] {
            assert_eq!(split_stamp(without), (None, without));
        }
    }
}
