//! Log lines on their way to the server: batches every two seconds, bounded memory, never fatal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::id::{FlowRunId, TaskRunId};
use prefect_api::record::NewLog;
use prefect_client::Client;
use prefect_client::settings::Logging;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most lines in a batch.
const BATCH_LINES: usize = 1_000;
/// Text that may wait for a server that is away, beside one batch.
const BUFFER_BYTES: usize = 8_000_000;
/// What a line costs beside its text.
const LINE_OVERHEAD: usize = 200;

/// How much a line matters, as Prefect counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
}

/// Whose line it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) flow_run: FlowRunId,
    pub(crate) task_run: Option<TaskRunId>,
    /// The run's name, for the terminal.
    pub(crate) name: &'a str,
}

/// The way out for log lines. Cheap to clone; writing never waits.
#[derive(Debug, Clone)]
pub(crate) struct LogSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    logging: Logging,
    buffer: Mutex<Buffer>,
    /// There are enough lines for a batch.
    full: Notify,
    /// Held while lines are sent: one batch at a time, in order.
    sending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Buffer {
    lines: VecDeque<NewLog>,
    bytes: usize,
    dropped: usize,
    /// A batch whose sending failed, perhaps only after the server had taken it.
    failed: Vec<NewLog>,
    /// The time of the last line.
    last: Timestamp,
}

impl Buffer {
    fn cost(line: &NewLog) -> usize {
        line.message.len() + LINE_OVERHEAD
    }

    /// The time of a new line: the server keeps microseconds and orders lines by them, hence no two have the same.
    fn next_moment(&mut self, now: Timestamp) -> Timestamp {
        let unit = SignedDuration::from_micros(1);
        let now = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        self.last = now.max(self.last.saturating_add(unit).unwrap_or(now));
        self.last
    }

    fn push(&mut self, line: NewLog) {
        self.bytes += Self::cost(&line);
        self.lines.push_back(line);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > BUFFER_BYTES {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= Self::cost(&oldest);
            self.dropped += 1;
        }
    }

    /// The next batch, oldest lines first. If lines were lost, the first one says so.
    fn batch(&mut self, most_bytes: usize) -> Vec<NewLog> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(line) = self.lines.front() {
            let cost = Self::cost(line);
            if batch.len() == BATCH_LINES || (bytes + cost > most_bytes && !batch.is_empty()) {
                break;
            }
            bytes += cost;
            self.bytes -= cost;
            batch.extend(self.lines.pop_front());
        }
        if self.dropped > 0
            && let Some(next) = batch.first().cloned()
        {
            let message = format!("{} log line(s) before this one were dropped", self.dropped);
            batch.insert(0, NewLog { level: Level::Warning as u8, message, ..next });
            self.dropped = 0;
        }
        batch
    }
}

impl LogSink {
    pub(crate) fn new(logging: Logging) -> Self {
        let shared = Shared {
            logging,
            buffer: Mutex::default(),
            full: Notify::new(),
            sending: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Writes a line to the terminal and into the next batch.
    pub(crate) fn write(&self, level: Level, origin: Origin<'_>, message: String) {
        let Origin { name, .. } = origin;
        match level {
            Level::Debug => tracing::debug!(run = name, "{message}"),
            Level::Info => tracing::info!(run = name, "{message}"),
            Level::Warning => tracing::warn!(run = name, "{message}"),
            Level::Error => tracing::error!(run = name, "{message}"),
        }
        let logging = &self.shared.logging;
        if !logging.reports(level as u8) {
            return;
        }
        let logger = if origin.task_run.is_some() { "prefect.task_runs" } else { "prefect.flow_runs" };
        let message = logging.clean(message);
        let mut buffer = self.buffer();
        let line = NewLog {
            name: logger.to_owned(),
            level: level as u8,
            message,
            timestamp: buffer.next_moment(Timestamp::now()),
            flow_run_id: Some(origin.flow_run),
            task_run_id: origin.task_run,
        };
        buffer.push(line);
        if buffer.lines.len() >= BATCH_LINES || buffer.bytes >= logging.batch_bytes {
            self.shared.full.notify_one();
        }
    }

    /// Sends batches until `closing` fires. A batch on its way is not given up then: sent again, its lines would
    /// be there twice.
    pub(crate) async fn deliver(&self, client: &Client, closing: &CancellationToken) {
        let every = self.shared.logging.interval;
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.shared.full.notified() => {}
                () = closing.cancelled() => return,
            }
            if !self.send_all(client).await {
                // The client has tried for a while already.
                closing.run_until_cancelled(tokio::time::sleep(every)).await;
            }
        }
    }

    /// Sends what is left, within the deadline.
    pub(crate) async fn flush(&self, client: &Client, deadline: Duration) {
        let end = Instant::now() + deadline;
        let send = async {
            while !self.send_all(client).await {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        if tokio::time::timeout_at(end, send).await.is_err() {
            let buffer = self.buffer();
            let left = buffer.lines.len() + buffer.failed.len();
            tracing::warn!(left, "log lines did not reach the Prefect server");
        }
    }

    /// `false` if the server is away.
    async fn send_all(&self, client: &Client) -> bool {
        let _one_at_a_time = self.shared.sending.lock().await;
        loop {
            let failed = std::mem::take(&mut self.buffer().failed);
            let again = !failed.is_empty();
            let batch = if again { failed } else { self.next_batch() };
            if batch.is_empty() {
                return true;
            }
            let mut sending = Sending { sink: self, batch };
            let sent = if again {
                client.send_logs_again(&sending.batch).await
            } else {
                client.send_logs(&sending.batch).await
            };
            match sent {
                Ok(()) => sending.batch.clear(),
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "log lines wait for the Prefect server");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(lines = sending.batch.len(), %error, "the Prefect server refuses log lines");
                    sending.batch.clear();
                }
            }
        }
    }

    fn next_batch(&self) -> Vec<NewLog> {
        self.buffer().batch(self.shared.logging.batch_bytes)
    }

    fn buffer(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.shared.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch on its way; goes back to where it waits when it does not arrive.
struct Sending<'a> {
    sink: &'a LogSink,
    batch: Vec<NewLog>,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.sink.buffer().failed = std::mem::take(&mut self.batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> NewLog {
        NewLog {
            name: "prefect.flow_runs".to_owned(),
            level: 20,
            message: message.to_owned(),
            timestamp: Timestamp::UNIX_EPOCH,
            flow_run_id: None,
            task_run_id: None,
        }
    }

    #[test]
    fn a_full_buffer_drops_its_oldest_lines_and_says_so() {
        let mut buffer = Buffer::default();
        let text = "x".repeat(1_000_000);
        for number in 0..10 {
            buffer.push(line(&format!("{number}{text}")));
        }
        assert!(buffer.bytes <= BUFFER_BYTES);
        let batch = buffer.batch(1_000_000);
        assert_eq!(batch[0].message, "3 log line(s) before this one were dropped");
        assert!(batch[1].message.starts_with('3'));
    }

    #[test]
    fn batches_keep_the_order() {
        let mut buffer = Buffer::default();
        for number in 0..=BATCH_LINES {
            buffer.push(line(&number.to_string()));
        }
        let batch = buffer.batch(1_000_000);
        assert_eq!((batch.len(), batch[0].message.as_str()), (BATCH_LINES, "0"));
        assert_eq!(buffer.batch(1_000_000)[0].message, BATCH_LINES.to_string());
        assert!(buffer.batch(1_000_000).is_empty());
        assert_eq!(buffer.bytes, 0);
    }

    #[test]
    fn lines_of_one_moment_stay_in_order() {
        let mut buffer = Buffer::default();
        let now: Timestamp = "2026-11-25T14:58:37.123456789Z".parse().unwrap();
        let moments = [now, now, Timestamp::UNIX_EPOCH].map(|now| buffer.next_moment(now).to_string());
        let expected =
            ["37.123456Z", "37.123457Z", "37.123458Z"].map(|end| format!("2026-11-25T14:58:{end}"));
        assert_eq!(moments, expected);
    }
}
