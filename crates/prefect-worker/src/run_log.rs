//! Lines in the logs of runs. Only lines about a run go to the server; the worker's own go to its stderr.

use std::time::Duration;

use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use prefect_api::record::NewLog;
use prefect_client::Client;
use tokio::sync::mpsc;

use crate::launcher::Notes;

/// Lines that may wait; a worker writes a handful a run.
const QUEUE: usize = 4096;
const BATCH: usize = 500;
const INTERVAL: Duration = Duration::from_secs(2);
/// How often a batch is tried; each try has the client's retries within.
const ATTEMPTS: u32 = 5;

/// The way to the logs of all runs. The delivery ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct RunLogs {
    lines: mpsc::Sender<NewLog>,
}

impl RunLogs {
    /// The way in, and the delivery to be run beside it.
    pub(crate) fn new(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (lines, receiver) = mpsc::channel(QUEUE);
        (Self { lines }, deliver(client, receiver))
    }

    /// The log of one run.
    pub(crate) fn of(&self, run: FlowRunId) -> RunLog {
        RunLog { lines: self.lines.clone(), run }
    }
}

/// The log of one run. Each line goes to the worker's own log too.
#[derive(Debug, Clone)]
pub(crate) struct RunLog {
    lines: mpsc::Sender<NewLog>,
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

    fn write(&self, level: u8, message: &str) {
        let line = NewLog {
            name: "prefect.flow_runs.worker".to_owned(),
            level,
            message: message.replace('\0', ""),
            timestamp: Timestamp::now(),
            flow_run_id: Some(self.run),
            task_run_id: None,
        };
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
async fn deliver(client: Client, mut lines: mpsc::Receiver<NewLog>) {
    let mut batch = Vec::new();
    while lines.recv_many(&mut batch, BATCH).await > 0 {
        // A little patience makes one request of the lines of one submission.
        let patience = tokio::time::sleep(INTERVAL);
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
        send(&client, &batch).await;
        batch.clear();
    }
}

async fn send(client: &Client, batch: &[NewLog]) {
    for attempt in 1..=ATTEMPTS {
        match client.send_logs(batch).await {
            Ok(()) => return,
            Err(error) if error.is_transient() && attempt < ATTEMPTS => tokio::time::sleep(INTERVAL).await,
            Err(error) => {
                tracing::warn!(lines = batch.len(), %error, "log lines did not reach the server");
                return;
            }
        }
    }
}
