//! Output of infrastructure as lines in the log of its run.

use std::pin::Pin;

use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use prefect_client::Client;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::error::chain;
use crate::launcher::{OutputSink, Piece};
use crate::redact::redact;
use crate::run_log::{OUTPUT_LOGGER, RunLog};

/// Pieces that may wait.
const QUEUE: usize = 64;
/// The most of one line that is kept, in characters.
const LINE_LIMIT: usize = 4000;
/// How many of the last lines of a log are looked through.
const LOOK_BACK: u32 = 200;

type PassingOn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// For output that goes nowhere else.
pub(super) fn nothing() -> PassingOn {
    Box::pin(std::future::ready(()))
}

/// A sink whose pieces become lines in the run's log, and go to `stdout` too. What passes them on ends with
/// the sink. A server that is slow slows the reading of the output, and holds nothing up in memory.
pub(super) fn to_log(
    log: RunLog,
    secrets: Vec<SecretString>,
    stdout: Option<OutputSink>,
    after: Option<Timestamp>,
) -> (OutputSink, PassingOn) {
    let (pieces, mut incoming) = mpsc::channel::<Piece>(QUEUE);
    let passing_on = async move {
        while let Some(piece) = incoming.recv().await {
            let text = String::from_utf8_lossy(&piece.bytes);
            for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
                let line: String = line.chars().take(LINE_LIMIT).collect();
                log.output(piece.at, &redact(&line, &secrets)).await;
            }
            if let Some(stdout) = &stdout
                && stdout.after.is_none_or(|after| piece.at > after)
            {
                // Nobody reads the worker's output any more; the log goes on.
                drop(stdout.pieces.send(piece).await);
            }
        }
    };
    (OutputSink { pieces, after }, Box::pin(passing_on))
}

/// The time of the last line of output that is in the run's log.
pub(super) async fn last_logged(client: &Client, run: FlowRunId) -> Option<Timestamp> {
    let filter = json!({
        "logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC", "limit": LOOK_BACK,
    });
    match client.filter_logs(&filter).await {
        Ok(lines) => {
            let output = lines.iter().find(|line| line["name"] == OUTPUT_LOGGER)?;
            output.get("timestamp").and_then(Value::as_str)?.parse().ok()
        }
        Err(error) => {
            tracing::debug!(flow_run.id = %run, error = chain(&error), "the log was not read; lines may come twice");
            None
        }
    }
}
