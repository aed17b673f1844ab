//! As much of a Prefect server as a worker talks to, without WebSockets: one pool, one deployment, its runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{DEADLINE, Journal};

/// Every record but runs and states has this id.
/// The id of whatever needs no id of its own: the pool's, too.
pub(super) const ID: Uuid = Uuid::nil();

type Reply = (StatusCode, Json<Value>);
type Shared = State<Arc<Server>>;

pub(super) struct FakeApi {
    server: Arc<Server>,
    port: u16,
    task: JoinHandle<()>,
}

struct Server {
    journal: Journal,
    records: Mutex<Records>,
    polls: watch::Sender<usize>,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own that a test switches on")]
struct Records {
    pool: Option<Value>,
    deployment_gone: bool,
    runs: BTreeMap<Uuid, Value>,
    reject_claims: bool,
    /// What answers 404 like a proxy without a server, health included.
    away: bool,
    /// The next claim is accepted, but the answer is lost.
    lose_claim: bool,
    demand_credentials: bool,
    /// The version that the server says it is, if it is not the usual one.
    version: Option<&'static str>,
    /// Workers that the server hears.
    heard: Vec<String>,
    /// The next proposal of this state gets a 500.
    fail_next: Option<String>,
    /// Somebody cancels the run right before the next proposal of this state.
    cancel_before: Option<String>,
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeApi {
    pub(super) async fn start(journal: Journal) -> Self {
        let pool = json!({"id": ID, "name": "pool", "type": "docker", "base_job_template": {}});
        let records = Mutex::new(Records { pool: Some(pool), ..Records::default() });
        let server = Arc::new(Server { journal, records, polls: watch::Sender::new(0) });
        let guard = middleware::from_fn_with_state(Arc::clone(&server), guard);
        let router = Router::new()
            .route(
                "/api/csrf-token",
                get(|| async {
                    answer(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        json!({"detail": "CSRF protection is disabled."}),
                    )
                }),
            )
            .route("/api/admin/version", get(version))
            .route("/api/health", get(|| async { ok(json!(true)) }))
            .route("/api/work_pools/", post(create_pool))
            .route("/api/work_pools/pool", get(read_pool).patch(change_pool))
            .route("/api/work_pools/pool/workers/heartbeat", post(heartbeat))
            .route("/api/work_pools/pool/workers/filter", post(workers))
            .route("/api/work_pools/pool/queues/filter", post(|| async { ok(json!([])) }))
            .route("/api/work_pools/pool/get_scheduled_flow_runs", post(poll))
            .route("/api/deployments/{id}", get(read_deployment))
            .route("/api/flows/{id}", get(|| async { ok(json!({"id": ID, "name": "flow"})) }))
            .route("/api/flow_runs/filter", post(filter_runs))
            .route("/api/flow_runs/{id}", get(read_run).patch(change_run))
            .route("/api/flow_runs/{id}/labels", patch(label_run))
            .route("/api/flow_runs/{id}/set_state", post(set_state))
            .route("/api/logs/", post(|| async { (StatusCode::CREATED, Json(Value::Null)) }))
            .route("/api/events", post(|| async { StatusCode::NO_CONTENT }))
            .layer(guard)
            .with_state(Arc::clone(&server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { server, port, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api", self.port)
    }

    /// A run that is due.
    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    pub(super) fn schedule(&self, job_variables: Value) -> Uuid {
        let id = Uuid::now_v7();
        let run = json!({
            "id": id, "name": "blue-owl", "flow_id": ID, "deployment_id": ID, "run_count": 0,
            "job_variables": job_variables, "state_type": "SCHEDULED", "state_name": "Scheduled",
        });
        self.records(|records| records.runs.insert(id, run));
        id
    }

    /// A run as a former worker of this name has left it: claimed with `claim`, on this place.
    pub(super) fn claimed(&self, worker: &str, claim: Uuid, kind: &str) -> Uuid {
        let id = self.schedule(json!({}));
        let mut change = state_of(kind, kind);
        change["state"]["state_details"] = json!({"transition_id": claim});
        merge(
            &mut change,
            json!({
                "infrastructure_pid": "fake:left", "labels": {"prefect.worker.name": worker, "ferryman.place": "here"},
            }),
        );
        self.records(|records| merge(records.runs.get_mut(&id).unwrap(), change));
        id
    }

    /// Somebody cancels a run.
    pub(super) fn cancel(&self, id: Uuid) {
        self.enter(id, "CANCELLING");
    }

    /// What runs inside the infrastructure reports.
    pub(super) fn report_running(&self, id: Uuid) {
        self.enter(id, "RUNNING");
        self.records(|records| records.runs.get_mut(&id).unwrap()["run_count"] = json!(1));
    }

    pub(super) fn delete_deployment(&self) {
        self.records(|records| records.deployment_gone = true);
    }

    pub(super) fn delete_pool(&self) {
        self.records(|records| records.pool = None);
    }

    pub(super) fn change_pool(&self, change: Value) {
        self.records(|records| merge(records.pool.as_mut().unwrap(), change));
    }

    pub(super) fn reject_claims(&self) {
        self.records(|records| records.reject_claims = true);
    }

    pub(super) fn demand_credentials(&self, demand: bool) {
        self.records(|records| records.demand_credentials = demand);
    }

    pub(super) fn set_version(&self, version: &'static str) {
        self.records(|records| records.version = Some(version));
    }

    /// From now on, or not any more, only a proxy answers.
    pub(super) fn go_away(&self, away: bool) {
        self.records(|records| records.away = away);
    }

    pub(super) fn lose_the_next_claim(&self) {
        self.records(|records| records.lose_claim = true);
    }

    /// Somebody else ends a run.
    pub(super) fn end(&self, id: Uuid) {
        self.enter(id, "FAILED");
    }

    /// The server hears a worker of this name.
    pub(super) fn heard(&self, worker: &str) {
        self.records(|records| records.heard.push(worker.to_owned()));
    }

    /// It is time for the runs that await a retry.
    pub(super) fn release_retries(&self) {
        self.records(|records| {
            for run in records.runs.values_mut().filter(|run| run["state_name"] == "AwaitingRetry") {
                run["state_name"] = json!("Scheduled");
            }
        });
    }

    pub(super) fn cancel_before(&self, state: &str) {
        self.records(|records| records.cancel_before = Some(state.to_owned()));
    }

    pub(super) fn fail_next(&self, state: &str) {
        self.records(|records| records.fail_next = Some(state.to_owned()));
    }

    /// Waits for so many polls from now.
    pub(super) async fn polls(&self, count: usize) {
        let mut polls = self.server.polls.subscribe();
        let goal = *polls.borrow() + count;
        let polled = tokio::time::timeout(DEADLINE, polls.wait_for(|polls| *polls >= goal)).await;
        assert!(polled.is_ok(), "the worker does not poll");
    }

    fn enter(&self, id: Uuid, kind: &str) {
        self.records(|records| merge(records.runs.get_mut(&id).unwrap(), state_of(kind, kind)));
    }

    fn records<T>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        change(&mut self.server.records.lock().unwrap())
    }
}

fn answer(status: StatusCode, body: Value) -> Reply {
    (status, Json(body))
}

fn ok(body: Value) -> Reply {
    answer(StatusCode::OK, body)
}

fn not_found() -> Reply {
    answer(StatusCode::NOT_FOUND, json!({"detail": "not found"}))
}

fn merge(record: &mut Value, change: Value) {
    if let (Value::Object(record), Value::Object(change)) = (record, change) {
        record.extend(change);
    }
}

fn state_of(kind: &str, name: &str) -> Value {
    let state =
        json!({"id": Uuid::now_v7(), "type": kind, "name": name, "timestamp": "2026-11-22T04:42:18Z"});
    json!({"state_type": kind, "state_name": name, "state": state})
}

async fn guard(
    State(server): Shared,
    request: axum::extract::Request,
    next: middleware::Next,
) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    let (away, demand) = {
        let records = server.records.lock().unwrap();
        (records.away, records.demand_credentials)
    };
    if away {
        server.journal.write("answered by a proxy");
        return (StatusCode::NOT_FOUND, "404 page not found").into_response();
    }
    if demand {
        server.journal.write("unauthorized");
        return answer(StatusCode::UNAUTHORIZED, json!({"exception_message": "Unauthorized"}))
            .into_response();
    }
    next.run(request).await
}

async fn version(State(server): Shared) -> Reply {
    let version = server.records.lock().unwrap().version;
    ok(json!(version.unwrap_or(prefect_client::PREFECT_VERSION)))
}

async fn workers(State(server): Shared) -> Reply {
    let heard = server.records.lock().unwrap().heard.clone();
    let record = |name| json!({"name": name, "last_heartbeat_time": jiff::Timestamp::now(), "heartbeat_interval_seconds": 30});
    ok(heard.into_iter().map(record).chain([json!({"name": "dead"})]).collect())
}

async fn read_pool(State(server): Shared) -> Reply {
    server.records.lock().unwrap().pool.clone().map_or_else(not_found, ok)
}

async fn create_pool(State(server): Shared, Json(mut pool): Json<Value>) -> Reply {
    server.journal.write(format!("create pool {}", pool["type"].as_str().unwrap()));
    assert!(pool["base_job_template"]["job_configuration"]["image"].is_string());
    merge(&mut pool, json!({"id": ID}));
    server.records.lock().unwrap().pool = Some(pool.clone());
    answer(StatusCode::CREATED, pool)
}

async fn change_pool(State(server): Shared, Json(change): Json<Value>) -> StatusCode {
    server.journal.write("give the pool a template");
    merge(server.records.lock().unwrap().pool.as_mut().unwrap(), change);
    StatusCode::NO_CONTENT
}

async fn heartbeat(State(server): Shared, Json(body): Json<Value>) -> StatusCode {
    let name = body["name"].as_str().unwrap();
    server.journal.write(format!("heartbeat {name} {}", body["heartbeat_interval_seconds"]));
    StatusCode::NO_CONTENT
}

async fn poll(State(server): Shared) -> Reply {
    server.polls.send_modify(|polls| *polls += 1);
    let records = server.records.lock().unwrap();
    let due = records
        .runs
        .values()
        .filter(|run| run["state_type"] == "SCHEDULED" && run["state_name"] != "AwaitingRetry");
    let due = due.map(|run| json!({"work_pool_id": ID, "work_queue_id": ID, "flow_run": run}));
    ok(due.collect())
}

async fn read_deployment(State(server): Shared) -> Reply {
    if server.records.lock().unwrap().deployment_gone {
        return not_found();
    }
    ok(json!({"id": ID, "name": "dep", "flow_id": ID, "job_variables": {"image": "i:1"}}))
}

async fn read_run(State(server): Shared, Path(id): Path<Uuid>) -> Reply {
    server.journal.write("read run");
    server.records.lock().unwrap().runs.get(&id).cloned().map_or_else(not_found, ok)
}

async fn filter_runs(State(server): Shared, Json(filter): Json<Value>) -> Reply {
    let wanted = |part: &Value, value: &Value| part["any_"].as_array().is_none_or(|any| any.contains(value));
    let (ids, states) = (&filter["flow_runs"]["id"], &filter["flow_runs"]["state"]["type"]);
    if states["any_"] == json!(["CANCELLING", "CANCELLED"]) {
        server.journal.write("asked who is cancelling");
    }
    let records = server.records.lock().unwrap();
    let runs = records.runs.values();
    ok(runs.filter(|run| wanted(ids, &run["id"]) && wanted(states, &run["state_type"])).cloned().collect())
}

async fn change_run(State(server): Shared, Path(id): Path<Uuid>, Json(change): Json<Value>) -> StatusCode {
    server.journal.write(format!("change run {change}"));
    merge(server.records.lock().unwrap().runs.get_mut(&id).unwrap(), change);
    StatusCode::NO_CONTENT
}

async fn label_run(State(server): Shared, Path(id): Path<Uuid>, Json(labels): Json<Value>) -> StatusCode {
    server.journal.write(format!("label run {labels}"));
    let mut records = server.records.lock().unwrap();
    let run = records.runs.get_mut(&id).unwrap();
    if !run["labels"].is_object() {
        run["labels"] = json!({});
    }
    merge(&mut run["labels"], labels);
    StatusCode::NO_CONTENT
}

async fn set_state(State(server): Shared, Path(id): Path<Uuid>, Json(body): Json<Value>) -> Reply {
    let text = |field: &str| body["state"][field].as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text("type"), text("name"));
    let force = if body["force"] == true { " force" } else { "" };
    let entry = format!("state {kind} {name} {}{force}", text("message"));
    let mut records = server.records.lock().unwrap();
    if records.fail_next.as_ref() == Some(&kind) {
        records.fail_next = None;
        server.journal.write(format!("refused: {entry}"));
        return answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            json!({"exception_message": "Internal Server Error"}),
        );
    }
    if records.reject_claims && name == "Pending" {
        let state = state_of("CANCELLED", "Cancelled")["state"].clone();
        records.runs.remove(&id);
        server.journal.write(format!("rejected: {entry}"));
        return ok(
            json!({"status": "REJECT", "state": state, "details": {"type": "reject_details", "reason": "full"}}),
        );
    }
    if records.cancel_before.as_ref() == Some(&kind) {
        records.cancel_before = None;
        let run = records.runs.get_mut(&id).unwrap();
        merge(run, state_of("CANCELLING", "Cancelling"));
        server.journal.write(format!("rejected: {entry}"));
        return ok(json!({"status": "REJECT", "state": run["state"], "details": {"type": "reject_details"}}));
    }
    let run = records.runs.get_mut(&id).unwrap();
    let transition = &body["state"]["state_details"]["transition_id"];
    if run["state"]["state_details"]["transition_id"] == *transition {
        server.journal.write(format!("repeated: {entry}"));
        return ok(json!({"status": "REJECT", "state": run["state"], "details": {"type": "reject_details"}}));
    }
    if name == "Submitting" && run["state_type"] != "PENDING" {
        return ok(json!({"status": "ABORT", "state": run["state"], "details": {"type": "abort_details"}}));
    }
    let mut change = state_of(&kind, &name);
    if kind == "RUNNING" {
        change["run_count"] = json!(run["run_count"].as_u64().unwrap() + 1);
    }
    change["state"]["state_details"] = json!({"transition_id": transition});
    merge(run, change.clone());
    if std::mem::take(&mut records.lose_claim) {
        server.journal.write(format!("answer lost: {entry}"));
        return answer(StatusCode::INTERNAL_SERVER_ERROR, Value::Null);
    }
    server.journal.write(entry.trim_end());
    answer(
        StatusCode::CREATED,
        json!({"status": "ACCEPT", "state": change["state"], "details": {"type": "accept_details"}}),
    )
}
