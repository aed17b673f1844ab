//! The engine against a server on the wire.

mod fake;

mod cancel;
mod conversation;
mod deployments;
mod hooks;
mod limits;
mod outages;
mod pace;
mod pauses;
mod results;
mod runs;
mod subflows;
mod tasks;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prefect_client::settings::Inputs;
use prefect_client::{Client, Settings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::engine::{self, End, Engine, Options};
use crate::error::BoxError;
use crate::program::Program;
use crate::terminal::Terminal;
use crate::{Context, Flow};
use fake::Fake;

/// Parameters of most flows here.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(in crate::tests) struct Greeting {
    #[serde(default = "world")]
    pub(in crate::tests) name: String,
    #[serde(default)]
    pub(in crate::tests) count: u32,
}

fn world() -> String {
    "world".to_owned()
}

pub(in crate::tests) type Outcome = Result<(), BoxError>;

/// A server, and an engine that works for it.
pub(in crate::tests) struct Bench {
    pub(in crate::tests) fake: Fake,
    pub(in crate::tests) engine: Arc<Engine>,
    pub(in crate::tests) run: String,
}

impl Bench {
    /// With a pending run of flow `greet`.
    pub(in crate::tests) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(in crate::tests) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let fake = Fake::start().await;
        Self::on(fake, change)
    }

    pub(in crate::tests) fn on(fake: Fake, change: impl FnOnce(&mut Options)) -> Self {
        let environment = BTreeMap::from([
            ("PREFECT_API_URL".to_owned(), format!("http://{}/api", fake.address)),
            // The engine's patience is under test, not the client's.
            ("PREFECT_CLIENT_MAX_RETRIES".to_owned(), "0".to_owned()),
        ]);
        let nowhere = PathBuf::from("/nonexistent");
        let settings = Settings::resolve(&Inputs { environment, directory: nowhere }).unwrap();
        let mut options = Options::default();
        options.logging.interval = Duration::from_hours(1);
        change(&mut options);
        let client = Client::new(&settings).unwrap();
        let engine = Engine::start(client, options, Terminal::default(), &Program::new("test", "1.0"));
        let run = fake.lock().add_run("greet", &json!({"name": "you"}), None);
        Self { fake, engine, run }
    }

    /// Executes the run with this as the flow `greet`, and closes the engine.
    pub(in crate::tests) async fn execute(&self, flow: Flow<Greeting>) -> Result<End, engine::Error> {
        self.execute_program(&Program::new("test", "1.0").flow(flow)).await
    }

    pub(in crate::tests) async fn execute_program(&self, program: &Program) -> Result<End, engine::Error> {
        let end = engine::execute(&self.engine, program, self.run.parse().unwrap()).await;
        self.engine.close().await;
        end
    }

    pub(in crate::tests) fn states(&self) -> Vec<String> {
        self.fake.lock().states(&self.run)
    }

    /// The server is asked to cancel the run, and says so.
    pub(in crate::tests) fn cancel(&self) {
        self.fake.lock().set_state_type(&self.run, "CANCELLING");
        self.announce_cancelling();
    }

    /// The server sends the event of a cancellation.
    pub(in crate::tests) fn announce_cancelling(&self) {
        self.fake.emit(json!({
            "id": uuid::Uuid::new_v4(), "occurred": "2026-11-22T04:47:05.571364Z",
            "event": "prefect.flow-run.Cancelling",
            "resource": {"prefect.resource.id": format!("prefect.flow-run.{}", self.run)},
            "related": [], "payload": {},
        }));
    }
}

/// A flow `greet`.
pub(in crate::tests) fn greet<F, R>(body: F) -> Flow<Greeting>
where
    F: Fn(Context, Greeting) -> R + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    Flow::new("greet", body)
}

/// Replaces what differs between runs: ids by their order of appearance, times, run times.
pub(in crate::tests) fn redact(value: Value) -> Value {
    fn text(text: &str, ids: &mut Vec<String>) -> String {
        if text.parse::<jiff::Timestamp>().is_ok() {
            return "[time]".to_owned();
        }
        let mut out = String::new();
        let mut rest = text.chars();
        while let Some(next) = rest.clone().next() {
            let id: String = rest.clone().take(36).collect();
            if id.parse::<uuid::Uuid>().is_ok() && id.len() == 36 {
                let known = ids.iter().position(|known| *known == id).unwrap_or_else(|| {
                    ids.push(id);
                    ids.len() - 1
                });
                out.extend(["[id ", &known.to_string(), "]"]);
                rest.nth(35).unwrap();
            } else {
                out.push(next);
                rest.next();
            }
        }
        // Default names of task runs end in three characters of a random key.
        match out.rsplit_once('-') {
            Some((name, key))
                if key.len() == 3 && key.chars().all(|c| c.is_ascii_hexdigit()) && !name.is_empty() =>
            {
                format!("{name}-[key]")
            }
            _ => out,
        }
    }
    fn walk(value: Value, ids: &mut Vec<String>) -> Value {
        match value {
            Value::String(string) => Value::String(text(&string, ids)),
            Value::Array(items) => items.into_iter().map(|item| walk(item, ids)).collect(),
            Value::Object(map) => map
                .into_iter()
                .map(|(key, value)| {
                    let value = if key == "total_run_time" { json!("[duration]") } else { walk(value, ids) };
                    (key, value)
                })
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other,
        }
    }
    walk(value, &mut Vec::new())
}
