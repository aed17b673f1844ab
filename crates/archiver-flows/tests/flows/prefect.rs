//! A Prefect server that says yes to everything and remembers it: as much of the API as a flow run uses.
//! It takes events from the socket, but sends none, so that cancellations are found by polling.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server as handshake;
use uuid::Uuid;

const NOW: &str = "2026-01-01T00:00:00Z";

#[derive(Default)]
pub(crate) struct Records {
    pub(crate) flows: BTreeMap<String, String>,
    pub(crate) flow_runs: Vec<Value>,
    pub(crate) task_runs: Vec<Value>,
    pub(crate) logs: Vec<String>,
    pub(crate) artifacts: Vec<Value>,
    pub(crate) events: Vec<Value>,
    pub(crate) variables: BTreeMap<String, Value>,
    pub(crate) secrets: BTreeMap<String, String>,
}

/// The server; ends when it is dropped.
pub(crate) struct Prefect {
    records: Arc<Mutex<Records>>,
    url: String,
    _server: JoinSet<()>,
}

impl Prefect {
    pub(crate) async fn start() -> Self {
        let records = Arc::new(Mutex::new(Records::default()));
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api", front.local_addr().unwrap());
        let rest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rest_address = rest.local_addr().unwrap();
        let app = Router::new().fallback(serve).with_state(Arc::clone(&records));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(rest, app).await.unwrap() });
        let shared = Arc::clone(&records);
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = front.accept().await {
                connections.spawn(connection(stream, rest_address, Arc::clone(&shared)));
            }
        });
        Self { records, url, _server: server }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap()
    }

    /// The flow runs by name: state and message.
    pub(crate) fn flow_run(&self, name: &str) -> (String, String) {
        let records = self.records();
        let run = records.flow_runs.iter().rfind(|run| run["name"] == name);
        let run = run.unwrap_or_else(|| panic!("no flow run {name} among {:#?}", records.flow_runs));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&run["state"]["name"]), text(&run["state"]["message"]))
    }

    /// The task runs in the order of their last states, each with that state.
    pub(crate) fn task_runs(&self) -> Vec<String> {
        let mut last: Vec<(String, String, String)> = Vec::new();
        for event in &self.records().events {
            let name = event["event"].as_str().unwrap();
            let Some(state) = name.strip_prefix("prefect.task-run.") else { continue };
            let id = event["resource"]["prefect.resource.id"].as_str().unwrap().to_owned();
            let name = event["resource"]["prefect.resource.name"].as_str().unwrap().to_owned();
            last.retain(|(known, ..)| *known != id);
            last.push((id, name, state.to_owned()));
        }
        last.into_iter().map(|(_, name, state)| format!("{name}: {state}")).collect()
    }

    pub(crate) fn logged(&self, text: &str) -> bool {
        self.records().logs.iter().any(|line| line.contains(text))
    }

    pub(crate) fn artifact(&self, key: &str) -> Option<Value> {
        self.records().artifacts.iter().find(|artifact| artifact["key"] == key).cloned()
    }
}

/// Takes events off their socket; hands everything else over to the REST part.
async fn connection(mut stream: TcpStream, rest: SocketAddr, records: Arc<Mutex<Records>>) {
    let mut start = [0; 20];
    let count = stream.peek(&mut start).await.unwrap_or(0);
    if !start[..count].starts_with(b"GET /api/events/in ") {
        let mut rest = TcpStream::connect(rest).await.unwrap();
        drop(copy_bidirectional(&mut stream, &mut rest).await);
        return;
    }
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    let accept = |_: &handshake::Request, mut response: handshake::Response| {
        response.headers_mut().insert("sec-websocket-protocol", "prefect".parse().unwrap());
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, accept).await else { return };
    drop(socket.next().await);
    drop(socket.send(Message::text(json!({"type": "auth_success"}).to_string())).await);
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message {
            records.lock().unwrap().events.push(serde_json::from_str(&text).unwrap());
        }
    }
}

async fn serve(State(records): State<Arc<Mutex<Records>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let path = parts.uri.path().trim_start_matches("/api/").trim_end_matches('/').to_owned();
    let segments: Vec<&str> = path.split('/').collect();
    let mut records = records.lock().unwrap();
    match answer(&mut records, &parts.method, &segments, &parse(&body)) {
        Some(Value::Null) => StatusCode::NO_CONTENT.into_response(),
        Some(value) => axum::Json(value).into_response(),
        None => (StatusCode::NOT_FOUND, axum::Json(json!({"detail": "Not Found"}))).into_response(),
    }
}

fn parse(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or(Value::Null)
}

fn answer(records: &mut Records, method: &Method, path: &[&str], body: &Value) -> Option<Value> {
    match (method.as_str(), path) {
        ("GET", ["admin", "version"]) => Some(json!("3.7.2")),
        ("POST", ["flows"]) => {
            let name = body["name"].as_str()?.to_owned();
            let id = records.flows.entry(name.clone()).or_insert_with(|| Uuid::new_v4().to_string());
            Some(json!({"id": id, "name": name}))
        }
        ("GET", ["flows", id]) => {
            let name = records.flows.iter().find(|(_, known)| known == id)?.0;
            Some(json!({"id": id, "name": name}))
        }
        ("POST", ["flow_runs"]) => {
            let number = records.flow_runs.len();
            let mut run = merged(&json!({"id": Uuid::new_v4(), "run_count": 0}), body);
            if run["name"].is_null() {
                run["name"] = json!(format!("otter-{number}"));
            }
            set_state(&mut run, &body["state"]);
            records.flow_runs.push(run.clone());
            Some(run)
        }
        ("POST", ["flow_runs", "filter"]) => {
            let wanted = &body["flow_runs"];
            let found = records.flow_runs.iter().filter(|run| {
                chosen(&wanted["id"], &run["id"])
                    && chosen(&wanted["name"], &run["name"])
                    && chosen(&wanted["state"]["type"], &run["state_type"])
                    && chosen(&wanted["parent_task_run_id"], &run["parent_task_run_id"])
            });
            Some(found.cloned().collect())
        }
        ("GET", ["flow_runs", id]) => record(&mut records.flow_runs, id).cloned(),
        ("PATCH", ["flow_runs", id]) => {
            let run = record(&mut records.flow_runs, id)?;
            *run = merged(run, body);
            Some(Value::Null)
        }
        ("PATCH", ["flow_runs", _, "labels"]) => Some(Value::Null),
        ("POST", ["flow_runs", id, "set_state"]) => {
            let run = record(&mut records.flow_runs, id)?;
            set_state(run, &body["state"]);
            Some(json!({"status": "ACCEPT", "state": run["state"], "details": {}}))
        }
        ("POST", ["task_runs"]) => {
            let mut run = merged(&json!({"id": Uuid::new_v4()}), body);
            run["state"] = state(&body["state"]);
            records.task_runs.push(run.clone());
            Some(run)
        }
        ("POST", ["task_runs", "filter"]) => {
            let wanted = &body["task_runs"];
            Some(records.task_runs.iter().filter(|run| chosen(&wanted["id"], &run["id"])).cloned().collect())
        }
        ("POST", ["task_runs", _, "set_state"]) => {
            Some(json!({"status": "ACCEPT", "state": state(&body["state"]), "details": {}}))
        }
        ("POST", ["logs"]) => {
            let lines = body.as_array()?.iter().filter_map(|log| log["message"].as_str());
            records.logs.extend(lines.map(str::to_owned));
            Some(Value::Null)
        }
        ("POST", ["artifacts"]) => {
            let artifact = merged(&json!({"id": Uuid::new_v4()}), body);
            records.artifacts.push(artifact.clone());
            Some(artifact)
        }
        ("PATCH", ["artifacts", id]) => {
            let artifact = record(&mut records.artifacts, id)?;
            *artifact = merged(artifact, body);
            Some(Value::Null)
        }
        ("GET", ["variables", "name", name]) => {
            let value = records.variables.get(*name)?;
            Some(json!({"id": Uuid::new_v4(), "name": name, "value": value, "tags": []}))
        }
        ("GET", ["block_types", "slug", "secret", "block_documents", "name", name]) => {
            let value = records.secrets.get(*name)?;
            let id = Uuid::new_v4();
            Some(
                json!({"id": id, "name": name, "data": {"value": value}, "block_schema_id": id, "block_type_id": id}),
            )
        }
        _ => None,
    }
}

fn record<'a>(records: &'a mut [Value], id: &str) -> Option<&'a mut Value> {
    records.iter_mut().find(|record| record["id"] == id)
}

/// Whether a filter's `any_` lets a value pass.
fn chosen(filter: &Value, value: &Value) -> bool {
    filter["any_"].as_array().is_none_or(|any| any.contains(value))
}

fn merged(base: &Value, changes: &Value) -> Value {
    let mut merged = base.clone();
    for (name, value) in changes.as_object().into_iter().flatten() {
        merged[name] = value.clone();
    }
    merged
}

fn state(proposed: &Value) -> Value {
    merged(&json!({"id": Uuid::new_v4(), "timestamp": NOW, "name": null, "message": null}), proposed)
}

/// Gives a flow run a state.
pub(crate) fn set_state(run: &mut Value, proposed: &Value) {
    run["state"] = state(proposed);
    run["state_type"] = proposed["type"].clone();
    run["state_name"] = proposed["name"].clone();
    if proposed["type"] == "RUNNING" {
        run["run_count"] = json!(run["run_count"].as_u64().unwrap_or_default() + 1);
    }
}
