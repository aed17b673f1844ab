//! A Prefect server on the wire: records the conversation, keeps just enough state to answer.
//!
//! HTTP goes to axum; connections that ask for a socket are taken over before axum sees them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response as Handshake};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Value,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) record: Value,
    /// States proposed and taken, or set by others.
    pub(super) states: Vec<Value>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) calls: Vec<Call>,
    pub(super) events: Vec<Value>,
    /// Lines of logs that were taken.
    pub(super) logs: Vec<Value>,
    /// Artifacts that were made.
    pub(super) artifacts: Vec<Value>,
    pub(super) runs: HashMap<String, Run>,
    pub(super) flows: HashMap<String, String>,
    pub(super) task_runs: Vec<Value>,
    pub(super) variables: HashMap<String, Value>,
    /// The fields of blocks by `TYPE/NAME`.
    pub(super) blocks: HashMap<String, Value>,
    /// The block that says where results are kept.
    pub(super) default_storage: Option<String>,
    pub(super) deployments: HashMap<String, Value>,
    /// Answers to `set_state`, before the rules.
    pub(super) answers: VecDeque<Value>,
    /// Failures by a part of the path: so many with this status.
    pub(super) failures: Vec<(String, u32, u16)>,
    /// Calls that take effect but are answered by a gateway that lost the answer: by a part of the path, so many.
    pub(super) lost: Vec<(String, u32)>,
    /// Limits by name, with free slots.
    pub(super) limits: HashMap<String, u32>,
    pub(super) leases: HashMap<String, (Vec<String>, u32)>,
    /// Leases that a restart has cost; their slots still count.
    pub(super) forgotten: Vec<String>,
    /// What is kept with runs, by key.
    pub(super) inputs: HashMap<String, Value>,
    pub(super) refuse_sockets: bool,
    /// So many events are recorded, if not all.
    pub(super) recorded: Option<usize>,
    /// Calls of these paths take effect, but are not answered as long as they are here.
    pub(super) held: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    outgoing: broadcast::Sender<Value>,
    changed: watch::Sender<u64>,
    _tasks: Arc<JoinSet<()>>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let back = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, http) = (front.local_addr().unwrap(), back.local_addr().unwrap());
        let (outgoing, _) = broadcast::channel(64);
        let (changed, _) = watch::channel(0);
        let shared =
            Self { address, inner: Arc::default(), outgoing, changed, _tasks: Arc::new(JoinSet::new()) };
        let mut tasks = JoinSet::new();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        tasks.spawn(async move { axum::serve(back, router).await.unwrap() });
        let accepting = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = front.accept().await {
                connections.spawn(accepting.clone().connection(stream, http));
            }
        });
        Self { _tasks: Arc::new(tasks), ..shared }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(super) fn release(&self) {
        self.lock().held.clear();
        self.note();
    }

    fn note(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until what is recorded fulfils a condition.
    pub(super) async fn until(&self, mut condition: impl FnMut(&Inner) -> bool) {
        let mut changed = self.changed.subscribe();
        while !condition(&self.lock()) {
            changed.changed().await.unwrap();
        }
    }

    pub(super) fn emit(&self, event: Value) {
        // Nobody may be listening yet: then the poll has to find it.
        drop(self.outgoing.send(event));
    }

    pub(super) fn listeners(&self) -> usize {
        self.outgoing.receiver_count()
    }

    async fn connection(self, mut stream: TcpStream, http: SocketAddr) {
        let mut start = [0; 64];
        let count = stream.peek(&mut start).await.unwrap_or(0);
        let start = String::from_utf8_lossy(&start[..count]).into_owned();
        let Some(path) = ["/api/events/in", "/api/events/out"]
            .into_iter()
            .find(|path| start.starts_with(&format!("GET {path} ")))
        else {
            let mut upstream = TcpStream::connect(http).await.unwrap();
            drop(tokio::io::copy_bidirectional(&mut stream, &mut upstream).await);
            return;
        };
        if self.lock().refuse_sockets {
            return;
        }
        #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
        let accept = |_: &Request, mut response: Handshake| {
            response.headers_mut().insert("sec-websocket-protocol", "prefect".parse().unwrap());
            Ok(response)
        };
        let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, accept).await else { return };
        drop(socket.next().await);
        drop(socket.send(Message::text(json!({"type": "auth_success"}).to_string())).await);
        if path.ends_with("in") {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    self.lock().events.push(serde_json::from_str(&text).unwrap());
                    self.note();
                }
            }
            return;
        }
        drop(socket.next().await);
        let mut events = self.outgoing.subscribe();
        self.note();
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Ok(event) = event else { return };
                    let frame = json!({"type": "event", "event": event}).to_string();
                    if socket.send(Message::text(frame)).await.is_err() {
                        return;
                    }
                }
                message = socket.next() => if !matches!(message, Some(Ok(_))) { return },
            }
        }
    }
}

async fn answer(State(fake): State<Fake>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().trim_start_matches("/api").to_owned();
    if path == "/csrf-token" {
        return (StatusCode::UNPROCESSABLE_ENTITY, r#"{"detail":"CSRF protection is disabled."}"#)
            .into_response();
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, reply) = {
        let mut inner = fake.lock();
        inner.calls.push(Call { method: method.to_string(), path: path.clone(), body: body.clone() });
        let reply = inner.reply(method.as_str(), &path, &body);
        if inner.loses(&path) { (502, json!({"detail": "Bad Gateway"})) } else { reply }
    };
    fake.note();
    fake.until(|inner| !inner.held.contains(&path)).await;
    let status = StatusCode::from_u16(status).unwrap();
    if status == StatusCode::LOCKED {
        return (status, [("retry-after", "0.01")], reply.to_string()).into_response();
    }
    (status, reply.to_string()).into_response()
}

impl Inner {
    fn block_of(&self, id: &str) -> Option<Value> {
        self.blocks.keys().find(|name| block_id(name).to_string() == id).and_then(|name| self.block(name))
    }

    fn block(&self, name: &str) -> Option<Value> {
        let slug = name.split('/').next();
        self.blocks.get(name).map(|data| {
            let kind = Uuid::new_v4();
            json!({"id": block_id(name), "name": name, "data": data, "block_schema_id": Uuid::new_v4(),
                "block_type_id": kind, "block_type": {"id": kind, "slug": slug}})
        })
    }

    /// A run in state Pending, as a worker leaves it.
    pub(super) fn add_run(&mut self, flow: &str, parameters: &Value, deployment: Option<&str>) -> String {
        let flow_id = self.flow_id(flow);
        let id = Uuid::new_v4().to_string();
        let record = json!({
            "id": id, "name": "versed-caracal", "flow_id": flow_id, "parameters": parameters,
            "run_count": 0, "state_type": "PENDING", "state_name": "Pending", "tags": [],
            "deployment_id": deployment,
            "empirical_policy": {"max_retries": 0, "retry_delay_seconds": 0.0, "retries": null,
                "retry_delay": null, "pause_keys": ["1"], "resuming": false, "retry_type": null},
        });
        self.runs.insert(id.clone(), Run { record, states: Vec::new() });
        id
    }

    pub(super) fn flow_id(&mut self, name: &str) -> String {
        self.flows.entry(name.to_owned()).or_insert_with(|| Uuid::new_v4().to_string()).clone()
    }

    pub(super) fn set_state_type(&mut self, run: &str, kind: &str) {
        let run = self.runs.get_mut(run).unwrap();
        run.record["state_type"] = json!(kind);
        run.record["state_name"] = json!(kind);
    }

    /// Names of the states that a run was brought into.
    pub(super) fn states(&self, run: &str) -> Vec<String> {
        self.runs[run].states.iter().map(|state| state["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(super) fn last_message(&self, run: &str) -> String {
        self.runs[run].states.last().unwrap()["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Names of the task states that were reported, in order: `upload: Running`.
    pub(super) fn task_states(&self) -> Vec<String> {
        let mut events: Vec<&Value> =
            self.events.iter().filter(|it| it["event"].as_str().unwrap().contains("task-run")).collect();
        events.sort_by_key(|event| event["occurred"].as_str().unwrap().parse::<Timestamp>().unwrap());
        events
            .iter()
            .map(|event| {
                let key = event["payload"]["task_run"]["task_key"].as_str().unwrap();
                let name = event["payload"]["validated_state"]["name"].as_str().unwrap();
                format!("{}: {name}", key.rsplit_once('-').unwrap().0)
            })
            .collect()
    }

    /// All lines that were logged.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |line: &Value| format!("{} {}", line["level"], line["message"].as_str().unwrap());
        self.logs.iter().map(line).collect()
    }

    pub(super) fn calls_to(&self, method: &str, part: &str) -> Vec<Value> {
        self.calls
            .iter()
            .filter(|call| call.method == method && call.path.contains(part))
            .map(|call| call.body.clone())
            .collect()
    }

    fn loses(&mut self, path: &str) -> bool {
        let lost = self.lost.iter_mut().find(|(part, count)| path.contains(part.as_str()) && *count > 0);
        lost.map(|(_, count)| *count -= 1).is_some()
    }

    fn reply(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let failure =
            self.failures.iter_mut().find(|(part, count, _)| path.contains(part.as_str()) && *count > 0);
        if let Some((_, count, status)) = failure {
            *count -= 1;
            return (*status, json!({"exception_message": "as the test wants it"}));
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            ("GET", ["flow_runs", id]) => found(self.runs.get(*id).map(|run| run.record.clone())),
            ("PATCH", ["flow_runs", id]) => {
                let record = &mut self.runs.get_mut(*id).unwrap().record;
                for (key, value) in body.as_object().unwrap() {
                    record[key] = value.clone();
                }
                (204, Value::Null)
            }
            ("POST", ["flow_runs", "filter"]) => (200, self.filter_runs(body)),
            ("POST", ["flow_runs", _, "input"]) => {
                let (key, value) = (body["key"].as_str().unwrap(), body["value"].as_str().unwrap());
                self.inputs.insert(key.to_owned(), serde_json::from_str(value).unwrap());
                (201, Value::Null)
            }
            ("GET", ["flow_runs", _, "input", key]) => found(self.inputs.get(*key).cloned()),
            ("POST", ["flow_runs", id, "set_state"]) => (201, self.set_state(id, body)),
            ("POST", ["flow_runs"]) => self.create_run(body),
            ("POST", ["flows"]) => {
                let name = body["name"].as_str().unwrap();
                (201, json!({"id": self.flow_id(name), "name": name}))
            }
            ("GET", ["flows", id]) => {
                let name = self.flows.iter().find(|(_, it)| it == id).map(|(name, _)| name);
                found(name.map(|name| json!({"id": id, "name": name})))
            }
            ("GET", ["deployments", "name", flow, name]) => {
                let flow_id = json!(self.flow_id(flow));
                let mut known = self.deployments.values();
                found(known.find(|it| it["name"] == *name && it["flow_id"] == flow_id).cloned())
            }
            ("POST", ["deployments", id, "create_flow_run"]) => {
                let run = self.add_run("called", &body["parameters"], Some(id));
                let record = &mut self.runs.get_mut(&run).unwrap().record;
                record["state_type"] = json!("SCHEDULED");
                record["parent_task_run_id"] = body["parent_task_run_id"].clone();
                (201, record.clone())
            }
            ("GET", ["deployments", id]) => found(self.deployments.get(*id).cloned()),
            ("POST", ["task_runs", "filter"]) => (200, self.filter_task_runs(body)),
            ("POST", ["task_runs"]) => (201, self.create_task_run(body)),
            (_, ["artifacts" | "logs", rest @ ..]) => self.written(method, rest, body),
            ("GET", ["variables", "name", name]) => found(
                self.variables
                    .get(*name)
                    .map(|value| json!({"id": Uuid::new_v4(), "name": name, "value": value})),
            ),
            ("GET", ["block_types", "slug", kind, "block_documents", "name", name]) => {
                found(self.block(&format!("{kind}/{name}")))
            }
            ("GET", ["block_documents", id]) => found(self.block_of(id)),
            ("GET", ["admin", "storage"]) => {
                let id = self.default_storage.as_deref().map(block_id);
                (200, json!({"default_result_storage_block_id": id}))
            }
            ("POST", ["v2", "concurrency_limits", "increment-with-lease"]) => self.acquire(body),
            ("POST", ["v2", "concurrency_limits", "decrement-with-lease"]) => {
                let lease = body["lease_id"].as_str().unwrap();
                let (names, slots) = self.leases.remove(lease).unwrap_or_default();
                self.free(&names, slots);
                (204, Value::Null)
            }
            ("POST", ["v2", "concurrency_limits", "decrement"]) => {
                let names: Vec<String> = serde_json::from_value(body["names"].clone()).unwrap();
                self.free(&names, u32::try_from(body["slots"].as_u64().unwrap()).unwrap());
                (200, json!([]))
            }
            ("POST", ["v2", "concurrency_limits", "increment"]) => self.take_rate(body),
            ("POST", ["v2", "concurrency_limits", "leases", id, "renew"]) => {
                (if self.forgotten.iter().any(|lease| lease == id) { 410 } else { 204 }, Value::Null)
            }
            ("POST", ["events"]) => {
                self.events.extend(body.as_array().unwrap().iter().cloned());
                (204, Value::Null)
            }
            _ => (404, json!({"exception_message": format!("no route {method} {path}")})),
        }
    }

    fn create_run(&mut self, body: &Value) -> (u16, Value) {
        let key = &body["idempotency_key"];
        let same = |run: &&Run| key.is_string() && run.record["idempotency_key"] == *key;
        if let Some(run) = self.runs.values().find(same) {
            return (200, run.record.clone());
        }
        let name = self.flows.iter().find(|(_, id)| **id == body["flow_id"]).unwrap().0.clone();
        let id = self.add_run(&name, &body["parameters"], None);
        let record = &mut self.runs.get_mut(&id).unwrap().record;
        for key in ["flow_version", "parent_task_run_id", "empirical_policy", "idempotency_key"] {
            record[key] = body[key].clone();
        }
        if body["name"].is_string() {
            record["name"] = body["name"].clone();
        }
        (201, record.clone())
    }

    /// Artifacts and lines of logs: written, and looked for.
    fn written(&mut self, method: &str, path: &[&str], body: &Value) -> (u16, Value) {
        match (method, path, body) {
            ("POST", ["filter"], body) if body["artifacts"].is_object() => {
                let of_key = |made: &&Value| made["key"] == body["artifacts"]["key"]["any_"][0];
                (200, self.artifacts.iter().filter(of_key).cloned().collect())
            }
            ("POST", ["filter"], body) => {
                let at = &body["logs"]["timestamp"];
                let of_moment =
                    |line: &&Value| at["after_"] == line["timestamp"] && at["after_"] == at["before_"];
                (200, self.logs.iter().filter(of_moment).cloned().collect())
            }
            ("POST", _, Value::Array(lines)) => {
                self.logs.extend(lines.iter().cloned());
                (201, Value::Null)
            }
            ("POST", _, artifact) => {
                let mut made = artifact.clone();
                made["id"] = json!(Uuid::new_v4());
                self.artifacts.push(made.clone());
                (201, made)
            }
            _ => (204, Value::Null),
        }
    }

    fn acquire(&mut self, body: &Value) -> (u16, Value) {
        let (known, slots, limits) = self.asked(body);
        if known.iter().any(|name| self.limits[name] < slots) {
            return (423, json!({"detail": "Locked"}));
        }
        for name in &known {
            *self.limits.get_mut(name).unwrap() -= slots;
        }
        let lease = Uuid::new_v4().to_string();
        self.leases.insert(lease.clone(), (known, slots));
        (200, json!({"lease_id": lease, "limits": limits}))
    }

    fn take_rate(&mut self, body: &Value) -> (u16, Value) {
        let (known, slots, limits) = self.asked(body);
        if known.iter().any(|name| self.limits[name] < slots) {
            return (423, json!({"detail": "Locked"}));
        }
        for name in &known {
            *self.limits.get_mut(name).unwrap() -= slots;
        }
        (200, limits)
    }

    fn asked(&self, body: &Value) -> (Vec<String>, u32, Value) {
        let names: Vec<String> = serde_json::from_value(body["names"].clone()).unwrap();
        let known: Vec<String> = names.into_iter().filter(|name| self.limits.contains_key(name)).collect();
        let limits =
            known.iter().map(|name| json!({"id": Uuid::new_v4(), "name": name, "limit": 1})).collect();
        (known, u32::try_from(body["slots"].as_u64().unwrap()).unwrap(), limits)
    }

    fn free(&mut self, names: &[String], slots: u32) {
        for name in names {
            *self.limits.get_mut(name).unwrap() += slots;
        }
    }

    /// As when the server is restarted, which keeps leases in memory and counts in its database.
    pub(super) fn forget_leases(&mut self) {
        let leases = std::mem::take(&mut self.leases);
        self.forgotten.extend(leases.into_keys());
    }

    fn create_task_run(&mut self, body: &Value) -> Value {
        let same =
            |it: &&Value| ["flow_run_id", "task_key", "dynamic_key"].iter().all(|key| it[*key] == body[*key]);
        if let Some(existing) = self.task_runs.iter().find(same) {
            return existing.clone();
        }
        let mut record = body.clone();
        record["id"] = json!(Uuid::new_v4());
        let state = &mut record["state"];
        (state["id"], state["timestamp"]) = (json!(Uuid::new_v4()), json!(Timestamp::now()));
        self.task_runs.push(record.clone());
        record
    }

    /// Task runs as the recorder has made them of events.
    fn filter_task_runs(&self, body: &Value) -> Value {
        let recorded = self.recorded.unwrap_or(self.events.len()).min(self.events.len());
        let ids = body["task_runs"]["id"]["any_"].as_array().unwrap().iter();
        let last = |id: &Value| {
            let name = format!("prefect.task-run.{}", id.as_str().unwrap());
            self.events[..recorded].iter().rfind(|it| it["resource"]["prefect.resource.id"] == name)
        };
        let record = |id: &Value| {
            let event = last(id)?;
            let (mut record, mut state) =
                (event["payload"]["task_run"].clone(), event["payload"]["validated_state"].clone());
            (state["id"], state["timestamp"]) = (event["id"].clone(), event["occurred"].clone());
            (record["id"], record["state"]) = (id.clone(), state);
            Some(record)
        };
        ids.filter_map(record).collect()
    }

    fn filter_runs(&self, body: &Value) -> Value {
        let filter = &body["flow_runs"];
        let wanted =
            |key: &str, value: &Value| filter[key]["any_"].as_array().is_none_or(|any| any.contains(value));
        let runs = self.runs.values().map(|run| &run.record);
        ["id", "parent_task_run_id", "deployment_id"]
            .into_iter()
            .fold(runs.collect::<Vec<_>>(), |found, key| {
                found.into_iter().filter(|it| wanted(key, &it[key])).collect()
            })
            .into_iter()
            .cloned()
            .collect()
    }

    /// The rules of the contract's section 5 that matter here.
    fn set_state(&mut self, id: &str, body: &Value) -> Value {
        let run = self.runs.get_mut(id).unwrap();
        let mut state = body["state"].clone();
        state["id"] = json!(Uuid::new_v4());
        state["timestamp"] = json!(Timestamp::now());
        if let Some(answer) = self.answers.pop_front() {
            let mut answer = answer;
            if answer["status"] == "ACCEPT" {
                let details = answer["state_details"].take();
                merge(&mut state["state_details"], &details);
                run.record["run_count"] = json!(run.record["run_count"].as_u64().unwrap() + 1);
                run.states.push(state.clone());
                answer["state"] = state;
            }
            return answer;
        }
        let current = run.record["state_type"].as_str().unwrap().to_owned();
        let kind = state["type"].as_str().unwrap().to_owned();
        let now = json!({"id": Uuid::new_v4(), "type": current, "name": null, "timestamp": Timestamp::now(),
            "state_details": {}});
        if body["force"] == false && current == "CANCELLING" {
            return json!({"status": "REJECT", "state": now, "details": {"reason": "it is cancelling"}});
        }
        if kind == "PAUSED" {
            let (key, keys) =
                (&state["state_details"]["pause_key"], &mut run.record["empirical_policy"]["pause_keys"]);
            let keys = keys.as_array_mut().unwrap();
            if keys.contains(key) {
                return json!({"status": "REJECT", "state": now, "details": {"reason": "This pause has already fired."}});
            }
            keys.push(key.clone());
        }
        let count = run.record["run_count"].as_u64().unwrap();
        let retries = run.record["empirical_policy"]["retries"].as_u64().unwrap_or(0);
        if kind == "FAILED" && current == "RUNNING" && count <= retries {
            run.record["state_type"] = json!("SCHEDULED");
            run.record["empirical_policy"]["retry_type"] = json!("in_process");
            // Made by the server, hence without our transition id.
            let waiting = json!({"id": Uuid::new_v4(), "type": "SCHEDULED", "name": "AwaitingRetry",
                "timestamp": Timestamp::now(), "state_details": {}});
            run.record["state"] = waiting.clone();
            run.states.push(waiting.clone());
            return json!({"status": "REJECT", "state": waiting, "details": {"reason": "Retrying"}});
        }
        if kind == "RUNNING" {
            run.record["run_count"] = json!(count + 1);
        }
        run.record["state_type"] = json!(kind);
        run.record["state_name"] = state["name"].clone();
        run.record["state"] = state.clone();
        run.states.push(state.clone());
        json!({"status": "ACCEPT", "state": state, "details": {"type": "accept_details"}})
    }
}

fn merge(into: &mut Value, from: &Value) {
    if let Some(from) = from.as_object() {
        for (key, value) in from {
            into[key] = value.clone();
        }
    }
}

fn block_id(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

fn found(record: Option<Value>) -> (u16, Value) {
    record.map_or((404, json!({"exception_message": "Object not found."})), |record| (200, record))
}
