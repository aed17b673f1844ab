//! A server that keeps in memory what the bootstrap needs, and remembers what was written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde_json::{Value, json};

/// One call that changed something: `POST variables`, and its body.
pub(crate) struct Written {
    pub(crate) call: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct Records {
    /// By kind, then by the path that reads them.
    kept: BTreeMap<String, Value>,
    written: Vec<Written>,
    ids: u128,
    broken: Option<StatusCode>,
}

#[derive(Clone)]
pub(crate) struct Server {
    records: Arc<Mutex<Records>>,
    api_url: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_url = format!("http://{}/api", listener.local_addr().unwrap());
        let server = Self { records: Arc::default(), api_url };
        server.keep("block_types/slug/secret", json!({"slug": "secret"}));
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub(crate) fn api_url(&self) -> &str {
        &self.api_url
    }

    /// Puts a record where `path` reads it.
    pub(crate) fn keep(&self, path: &str, record: Value) {
        self.records.lock().unwrap().keep(path, record);
    }

    pub(crate) fn record(&self, path: &str) -> Option<Value> {
        self.records.lock().unwrap().kept.get(path).cloned()
    }

    /// Answers every write from now on with `status`.
    pub(crate) fn refuse_writes(&self, status: StatusCode) {
        self.records.lock().unwrap().broken = Some(status);
    }

    /// What was written since the last time.
    pub(crate) fn written(&self) -> Vec<Written> {
        std::mem::take(&mut self.records.lock().unwrap().written)
    }
}

async fn answer(State(server): State<Server>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().trim_start_matches("/api/").trim_end_matches('/').replace("%3A", ":");
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut records = server.records.lock().unwrap();
    let reads = method == Method::GET || path.ends_with("/filter");
    if !reads {
        if let Some(status) = records.broken {
            return (status, Json(json!({"detail": "broken on purpose"}))).into_response();
        }
        records.written.push(Written { call: format!("{method} {path}"), body: body.clone() });
    }
    match records.serve(&method, &path, body) {
        Some((status, Value::Null)) => status.into_response(),
        Some((status, value)) => (status, Json(value)).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({"detail": "not found"}))).into_response(),
    }
}

impl Records {
    fn serve(&mut self, method: &Method, path: &str, body: Value) -> Option<(StatusCode, Value)> {
        let created = |record| Some((StatusCode::CREATED, record));
        let segments: Vec<&str> = path.split('/').collect();
        match (method.as_str(), segments.as_slice()) {
            ("GET", ["csrf-token"]) => {
                Some((StatusCode::UNPROCESSABLE_ENTITY, json!({"detail": "CSRF protection is disabled."})))
            }
            ("GET", _) => self.kept.get(path).map(|record| (StatusCode::OK, record.clone())),
            ("POST", ["variables"]) => {
                created(self.add(&format!("variables/name/{}", text(&body, "name")), body))
            }
            ("POST", ["block_schemas", "filter"]) => {
                Some((StatusCode::OK, json!([{"id": self.id(), "checksum": "sha256:0"}])))
            }
            ("POST", ["block_documents"]) => {
                let path = format!("block_types/slug/secret/block_documents/name/{}", text(&body, "name"));
                created(self.add(&path, body))
            }
            ("POST", ["v2", "concurrency_limits"]) => {
                created(self.add(&format!("v2/concurrency_limits/{}", text(&body, "name")), body))
            }
            ("POST", ["work_pools"]) => {
                let name = text(&body, "name");
                let queue = json!({"name": "default", "priority": 1});
                self.add(&format!("work_pools/{name}/queues/default"), queue);
                created(self.add(&format!("work_pools/{name}"), body))
            }
            ("POST", ["work_pools", pool, "queues"]) => {
                created(self.add(&format!("work_pools/{pool}/queues/{}", text(&body, "name")), body))
            }
            ("POST", ["work_pools", _, "queues", "filter"]) => {
                let prefix = path.trim_end_matches("filter").to_owned();
                let queues = self.kept.iter().filter(|(path, _)| path.starts_with(&prefix));
                Some((StatusCode::OK, queues.map(|(_, queue)| queue.clone()).collect()))
            }
            ("POST", ["flows"]) => created(self.add(&format!("flows/name/{}", text(&body, "name")), body)),
            ("POST", ["deployments"]) => {
                let flow = self.with_id(text(&body, "flow_id"));
                let flow = flow.map(|path| path.trim_start_matches("flows/name/").to_owned()).unwrap();
                let path = format!("deployments/name/{flow}/{}", text(&body, "name"));
                created(self.add(&path, shown_deployment(body)))
            }
            ("PATCH", [_, id]) if self.with_id(id).is_some() => self.change(&self.with_id(id)?, body),
            ("PATCH", _) => self.change(path, body),
            _ => None,
        }
    }

    fn id(&mut self) -> String {
        self.ids += 1;
        uuid::Uuid::from_u128(self.ids).to_string()
    }

    fn add(&mut self, path: &str, record: Value) -> Value {
        if let Some(existing) = self.kept.get(path).filter(|_| path.starts_with("flows/")) {
            return existing.clone();
        }
        self.keep(path, record)
    }

    fn keep(&mut self, path: &str, mut record: Value) -> Value {
        let id = self.id();
        let fields = record.as_object_mut().unwrap();
        fields.entry("id").or_insert_with(|| json!(id));
        for field in ["block_schema_id", "block_type_id"] {
            fields.entry(field).or_insert_with(|| json!(id));
        }
        self.kept.insert(path.to_owned(), record.clone());
        record
    }

    fn with_id(&self, id: &str) -> Option<String> {
        let found = self.kept.iter().find(|(_, record)| record.get("id").and_then(Value::as_str) == Some(id));
        found.map(|(path, _)| path.clone())
    }

    fn change(&mut self, path: &str, body: Value) -> Option<(StatusCode, Value)> {
        let Value::Object(changes) = body else { return None };
        let record = self.kept.get_mut(path)?.as_object_mut()?;
        record.extend(changes.into_iter().filter(|(key, _)| key != "merge_existing_data"));
        Some((StatusCode::NO_CONTENT, Value::Null))
    }
}

/// The server shows the limit elsewhere than it takes it, and adds to schedules.
fn shown_deployment(body: Value) -> Value {
    let Value::Object(mut shown) = body else { return Value::Null };
    let limit = shown.insert("concurrency_limit".to_owned(), Value::Null).unwrap_or_default();
    let shown_limit = match limit {
        Value::Null => Value::Null,
        limit => json!({"id": uuid::Uuid::nil(), "name": "deployment:x", "limit": limit}),
    };
    shown.insert("global_concurrency_limit".to_owned(), shown_limit);
    if let Some(Value::Array(schedules)) = shown.get_mut("schedules") {
        for schedule in schedules {
            let when = schedule["schedule"].as_object_mut().unwrap();
            when.entry("timezone").or_insert_with(|| json!("UTC"));
            if let Some(rule) = when.get("rrule").and_then(Value::as_str) {
                let started = format!("DTSTART:20200101T000000\n{rule}");
                when.insert("rrule".to_owned(), json!(started));
            }
        }
    }
    if shown.get("work_queue_name").is_none_or(Value::is_null) {
        shown.insert("work_queue_name".to_owned(), json!("default"));
    }
    Value::Object(shown)
}

fn text<'a>(body: &'a Value, key: &str) -> &'a str {
    body.get(key).and_then(Value::as_str).unwrap_or_default()
}
