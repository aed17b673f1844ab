//! What the server holds of a flow run, and of those that it made: as one document, read from every page of the API
//! that tells something about it.
//!
//! - `read` asks the server, `document` makes one document of its answers.
//! - [`normal`] takes out of it what differs from run to run: ids, times, durations, random names.

mod document;
pub mod normal;
mod read;

use std::time::Duration;

use anyhow::{Result, bail};
use prefect_api::id::FlowRunId;
use serde_json::{Map, Value};
use testkit::prefect::Rest;
use tokio::time::{Instant, sleep};

use document::Writer;
use read::Reader;

/// Time between two looks at records that are still on their way.
const LOOK: Duration = Duration::from_secs(2);

/// Settings of a server under which its records are complete soon.
pub const PROMPT: [(&str, &str); 2] = [
    ("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL", "1"),
    ("PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED", "false"),
];

/// A flow run whose records are wanted.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The server.
    pub rest: &'a Rest,
    /// The run.
    pub run: FlowRunId,
    /// Words of its records that differ from run to run, and what stands for them.
    pub words: Vec<(String, &'static str)>,
    /// Concurrency limits that it has used: how many of their slots are taken belongs to the record.
    pub limits: &'a [&'a str],
    /// How long the server may take to write down all that it was told.
    pub deadline: Duration,
}

impl Subject<'_> {
    /// What the server holds, once it has written down all that it was told.
    pub async fn settled(&self) -> Result<Value> {
        let reader = Reader { rest: self.rest };
        let (run, started) = (self.run.to_string(), Instant::now());
        let mut last = None;
        loop {
            let now = reader.amount(&run).await?;
            if last == Some(now) {
                return self.read(&reader).await;
            }
            if started.elapsed() > self.deadline {
                bail!("the records do not come to rest");
            }
            last = Some(now);
            sleep(LOOK).await;
        }
    }

    async fn read(&self, reader: &Reader<'_>) -> Result<Value> {
        let raw = reader.raw(self.run.to_string(), "run".to_owned()).await?;
        let mut writer = Writer::default();
        writer.learn(&raw);
        for (word, name) in &self.words {
            writer.word(word, name);
        }
        let mut document = writer.document(&raw);
        let mut slots = Map::new();
        for limit in self.limits {
            let found = self.rest.get(&format!("/v2/concurrency_limits/{limit}")).await?;
            slots.insert((*limit).to_owned(), found["active_slots"].clone());
        }
        document.insert("slots".to_owned(), Value::Object(slots));
        Ok(Value::Object(document))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
