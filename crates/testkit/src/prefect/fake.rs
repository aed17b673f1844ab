//! As much of a Prefect server as a worker needs to bring thousands of runs through, in memory and within
//! microseconds: for figures that a real server would take hours for, never for what a server does.
//!
//! It has one pool, one flow and one deployment. There are no WebSockets.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::server::Server;

/// Every record but runs and states has this id.
const ID: Uuid = Uuid::from_u128(1);
/// Runs that one poll gives out at most, as of the real server.
const PAGE: usize = 200;

type Reply = (StatusCode, Json<Value>);
type Shared = State<Arc<Fake>>;

/// A server of runs that are all alike. Dropping it ends it.
#[derive(Debug)]
pub struct FakeServer {
    fake: Arc<Fake>,
    server: Server,
}

#[derive(Debug)]
struct Fake {
    records: Mutex<Records>,
    ended: watch::Sender<usize>,
}

#[derive(Debug)]
struct Records {
    pool: Value,
    job_variables: Value,
    /// Runs that nobody has claimed.
    due: VecDeque<Uuid>,
    runs: BTreeMap<Uuid, Value>,
    /// How many ended in which state.
    ends: BTreeMap<String, usize>,
}

impl FakeServer {
    /// Starts a server whose pool has this name and type; `job_variables` are the deployment's.
    pub async fn start(pool: &str, kind: &str, job_variables: Value) -> Result<Self> {
        let pool = json!({"id": ID, "name": pool, "type": kind, "base_job_template": {}});
        let records = Records {
            pool,
            job_variables,
            due: VecDeque::new(),
            runs: BTreeMap::new(),
            ends: BTreeMap::new(),
        };
        let fake = Arc::new(Fake { records: Mutex::new(records), ended: watch::Sender::new(0) });
        let router = Router::new()
            .route("/api/health", get(async || Json(true)))
            .route("/api/admin/version", get(async || Json(super::VERSION)))
            .route("/api/work_pools/{pool}", get(read_pool).patch(change_pool))
            .route("/api/work_pools/{pool}/workers/heartbeat", post(async || StatusCode::NO_CONTENT))
            .route("/api/work_pools/{pool}/workers/filter", post(async || Json(json!([]))))
            .route("/api/work_pools/{pool}/queues/filter", post(async || Json(json!([]))))
            .route("/api/work_pools/{pool}/get_scheduled_flow_runs", post(poll))
            .route("/api/deployments/{id}", get(read_deployment))
            .route("/api/deployments/filter", post(filter_deployments))
            .route("/api/flows/{id}", get(async || Json(json!({"id": ID, "name": "flow"}))))
            .route("/api/flow_runs/filter", post(filter_runs))
            .route("/api/flow_runs/{id}", get(read_run).patch(change_run))
            .route("/api/flow_runs/{id}/labels", patch(async || StatusCode::NO_CONTENT))
            .route("/api/flow_runs/{id}/set_state", post(set_state))
            .route("/api/logs/", post(async || StatusCode::CREATED))
            .route("/api/logs/filter", post(async || Json(json!([]))))
            .route("/api/events", post(async || StatusCode::NO_CONTENT))
            .with_state(Arc::clone(&fake));
        let server = Server::start(IpAddr::from([127, 0, 0, 1]), 0, router).await?;
        Ok(Self { fake, server })
    }

    /// Address of the API.
    pub fn api_url(&self) -> String {
        format!("{}/api", self.server.url())
    }

    /// Makes so many more runs, due now.
    pub fn schedule(&self, count: usize) {
        let mut records = self.fake.records();
        for _ in 0..count {
            let id = Uuid::now_v7();
            let now = Timestamp::now();
            let mut run = json!({"id": id, "name": "run", "flow_id": ID, "deployment_id": ID, "run_count": 0,
                "work_pool_id": ID, "work_queue_id": ID, "created": now,
                "expected_start_time": now, "next_scheduled_start_time": now});
            enter(&mut run, &json!({"type": "SCHEDULED", "name": "Scheduled"}));
            records.runs.insert(id, run);
            records.due.push_back(id);
        }
    }

    /// Waits until so many runs have ended since the start.
    pub async fn ended(&self, count: usize) -> Result<()> {
        let mut ended = self.fake.ended.subscribe();
        ended.wait_for(|ended| *ended >= count).await.context("the server has ended")?;
        Ok(())
    }

    /// How many runs ended in which state.
    pub fn ends(&self) -> BTreeMap<String, usize> {
        self.fake.records().ends.clone()
    }
}

impl Fake {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found(record: Option<Value>) -> Reply {
    match record {
        Some(record) => (StatusCode::OK, Json(record)),
        None => (StatusCode::NOT_FOUND, Json(json!({"detail": "not found"}))),
    }
}

fn merge(record: &mut Value, change: Value) {
    if let (Value::Object(record), Value::Object(change)) = (record, change) {
        record.extend(change);
    }
}

/// Puts a run into a proposed state, and gives the state as it is now.
fn enter(run: &mut Value, proposed: &Value) -> Value {
    let mut state = json!({"id": Uuid::now_v7(), "timestamp": Timestamp::now()});
    merge(&mut state, proposed.clone());
    merge(run, json!({"state_type": state["type"], "state_name": state["name"], "state": state}));
    state
}

fn is_final(run: &Value) -> bool {
    matches!(run["state_type"].as_str(), Some("COMPLETED" | "FAILED" | "CRASHED" | "CANCELLED"))
}

async fn read_pool(State(fake): Shared, Path(name): Path<String>) -> Reply {
    let pool = fake.records().pool.clone();
    found((pool["name"] == name).then_some(pool))
}

async fn change_pool(State(fake): Shared, Json(change): Json<Value>) -> StatusCode {
    merge(&mut fake.records().pool, change);
    StatusCode::NO_CONTENT
}

async fn poll(State(fake): Shared) -> Json<Value> {
    let records = fake.records();
    let due = records.due.iter().take(PAGE).filter_map(|id| records.runs.get(id));
    Json(due.map(|run| json!({"work_pool_id": ID, "work_queue_id": ID, "flow_run": run})).collect())
}

async fn read_deployment(State(fake): Shared) -> Json<Value> {
    Json(deployment(&fake))
}

async fn filter_deployments(State(fake): Shared) -> Json<Value> {
    Json(json!([deployment(&fake)]))
}

fn deployment(fake: &Fake) -> Value {
    let job_variables = fake.records().job_variables.clone();
    json!({"id": ID, "name": "deployment", "flow_id": ID, "job_variables": job_variables})
}

async fn read_run(State(fake): Shared, Path(id): Path<Uuid>) -> Reply {
    found(fake.records().runs.get(&id).cloned())
}

async fn filter_runs(State(fake): Shared, Json(filter): Json<Value>) -> Json<Value> {
    let wanted = &filter["flow_runs"];
    let any = |list: &Value, value: &Value| list.as_array().is_none_or(|list| list.contains(value));
    let number = |name: &str| filter[name].as_u64().and_then(|number| usize::try_from(number).ok());
    let records = fake.records();
    let runs = records.runs.values().filter(|run| {
        any(&wanted["id"]["any_"], &run["id"]) && any(&wanted["state"]["type"]["any_"], &run["state_type"])
    });
    let page = runs.skip(number("offset").unwrap_or_default()).take(number("limit").unwrap_or(PAGE));
    Json(page.cloned().collect())
}

async fn change_run(
    State(fake): Shared,
    Path(id): Path<Uuid>,
    Json(change): Json<Map<String, Value>>,
) -> StatusCode {
    match fake.records().runs.get_mut(&id) {
        Some(run) => {
            merge(run, Value::Object(change));
            StatusCode::NO_CONTENT
        }
        None => StatusCode::NOT_FOUND,
    }
}

/// The two rules of the real server that a worker lives by: a run is claimed once, and an end is an end.
async fn set_state(State(fake): Shared, Path(id): Path<Uuid>, Json(body): Json<Value>) -> Reply {
    let proposed = &body["state"];
    let mut records = fake.records();
    let Some(run) = records.runs.get_mut(&id) else { return found(None) };
    let is_claim = proposed["name"] == "Pending";
    if is_final(run) || (is_claim && run["state_type"] != "SCHEDULED") {
        let details = json!({"type": "abort_details", "reason": "This run has been claimed or has ended."});
        return found(Some(json!({"status": "ABORT", "state": run["state"], "details": details})));
    }
    let state = enter(run, proposed);
    let end = is_final(run).then(|| state["type"].as_str().unwrap_or_default().to_owned());
    if is_claim {
        records.due.retain(|due| *due != id);
    }
    if let Some(end) = end {
        *records.ends.entry(end).or_default() += 1;
        fake.ended.send_modify(|ended| *ended += 1);
    }
    let details = json!({"type": "accept_details"});
    (StatusCode::CREATED, Json(json!({"status": "ACCEPT", "state": state, "details": details})))
}
