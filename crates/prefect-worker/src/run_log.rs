//! Lines in the logs of runs. Only lines about a run go to the server; the worker's own go to its stderr.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use prefect_api::record::NewLog;
use prefect_client::Client;
use prefect_client::settings::Logging;
use tokio::sync::mpsc;

use crate::launcher::Notes;

/// Lines that may wait; a worker writes a handful a run.
const QUEUE: usize = 1024;
const BATCH: usize = 500;
const LOGGER: &str = "prefect.flow_runs.worker";
/// The logger of the output of infrastructure.
pub(crate) const OUTPUT_LOGGER: &str = "prefect.flow_runs.output";
/// Time between the first two tries; then twice as long each time.
const RETRY: Duration = Duration::from_secs(2);
/// How often a batch is tried; each try has the client's retries within.
const ATTEMPTS: u32 = 5;

/// The way to the logs of all runs. The delivery ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct RunLogs {
    lines: mpsc::Sender<NewLog>,
    logging: Arc<Logging>,
}

impl RunLogs {
    /// The way in, and the delivery to be run beside it.
    pub(crate) fn new(client: Client, logging: Logging) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (lines, receiver) = mpsc::channel(QUEUE);
        let logging = Arc::new(logging);
        (Self { lines, logging: Arc::clone(&logging) }, deliver(client, logging, receiver))
    }

    /// The log of one run.
    pub(crate) fn of(&self, run: FlowRunId) -> RunLog {
        RunLog { lines: self.lines.clone(), logging: Arc::clone(&self.logging), run }
    }
}

/// The log of one run. Each line goes to the worker's own log too.
#[derive(Debug, Clone)]
pub(crate) struct RunLog {
    lines: mpsc::Sender<NewLog>,
    logging: Arc<Logging>,
    run: FlowRunId,
}

impl RunLog {
    pub(crate) fn info(&self, message: &str) {
        tracing::info!(flow_run.id = %self.run, "{message}");
        self.write(20, message);
    }

    pub(crate) fn warn(&self, message: &str) {
        tracing::warn!(flow_run.id = %self.run, "{message}");
        self.write(30, message);
    }

    pub(crate) fn error(&self, message: &str) {
        tracing::error!(flow_run.id = %self.run, "{message}");
        self.write(40, message);
    }

    /// A line that the infrastructure wrote. Waits for room: output may come faster than the server takes it.
    pub(crate) async fn output(&self, at: Timestamp, message: &str) {
        // Without a delivery nobody can be told.
        drop(self.lines.send(self.line(OUTPUT_LOGGER, 20, at, message)).await);
    }

    fn line(&self, logger: &str, level: u8, timestamp: Timestamp, message: &str) -> NewLog {
        NewLog {
            name: logger.to_owned(),
            level,
            message: self.logging.clean(message.to_owned()),
            timestamp,
            flow_run_id: Some(self.run),
            task_run_id: None,
        }
    }

    fn write(&self, level: u8, message: &str) {
        if !self.logging.reports(level) {
            return;
        }
        let line = self.line(LOGGER, level, Timestamp::now(), message);
        if self.lines.try_send(line).is_err() {
            tracing::warn!(flow_run.id = %self.run, "the queue of log lines is full, a line is lost to the server");
        }
    }
}

impl Notes for RunLog {
    fn note(&self, line: &str) {
        self.info(line);
    }
}

/// Sends lines in batches until no [`RunLogs`] is left.
async fn deliver(client: Client, logging: Arc<Logging>, mut lines: mpsc::Receiver<NewLog>) {
    let mut batch: Vec<NewLog> = Vec::new();
    while lines.recv_many(&mut batch, BATCH).await > 0 {
        // A little patience makes one request of the lines of one submission.
        let patience = tokio::time::sleep(logging.interval);
        tokio::pin!(patience);
        while batch.len() < BATCH {
            tokio::select! {
                line = lines.recv() => match line {
                    Some(line) => batch.push(line),
                    None => break,
                },
                () = &mut patience => break,
            }
        }
        for part in parts(&batch, logging.batch_bytes) {
            send(&client, part).await;
        }
        batch.clear();
    }
}

/// Parts of a batch whose text has at most so many bytes, but for single lines that are longer.
fn parts(mut lines: &[NewLog], most_bytes: usize) -> Vec<&[NewLog]> {
    let mut parts = Vec::new();
    while !lines.is_empty() {
        let mut bytes = 0;
        let fitting = lines.iter().take_while(|line| {
            bytes += line.message.len();
            bytes <= most_bytes
        });
        let (part, rest) = lines.split_at(fitting.count().max(1));
        parts.push(part);
        lines = rest;
    }
    parts
}

async fn send(client: &Client, batch: &[NewLog]) {
    let mut pause = RETRY;
    for attempt in 1..=ATTEMPTS {
        let sent =
            if attempt == 1 { client.send_logs(batch).await } else { client.send_logs_again(batch).await };
        match sent {
            Ok(()) => return,
            Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => {
                tracing::warn!(lines = batch.len(), %error, "log lines did not reach the server");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_split_by_their_text_and_keep_their_order() {
        let line = |message: &str| NewLog {
            name: "prefect.flow_runs.worker".to_owned(),
            level: 20,
            message: message.to_owned(),
            timestamp: Timestamp::UNIX_EPOCH,
            flow_run_id: None,
            task_run_id: None,
        };
        let lines: Vec<_> = ["aa", "bb", "c", "dddddd", "e"].map(line).into();
        let parts: Vec<Vec<&str>> = parts(&lines, 4)
            .into_iter()
            .map(|part| part.iter().map(|line| line.message.as_str()).collect())
            .collect();
        assert_eq!(parts, [vec!["aa", "bb"], vec!["c"], vec!["dddddd"], vec!["e"]]);
    }
}
