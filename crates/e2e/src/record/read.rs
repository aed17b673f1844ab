//! Reading: every record of a flow run and of those that it made, as the server tells them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use testkit::prefect::Rest;

use super::text;

/// The largest page of most lists.
const PAGE: usize = 200;
/// The largest page of events.
const EVENTS: usize = 50;
/// Requests under way at a time.
const REQUESTS: usize = 8;

/// The records of a flow run as the server tells them, and of the runs that it made.
pub(super) struct Raw {
    pub(super) label: String,
    pub(super) run: Value,
    pub(super) states: Value,
    /// With their states.
    pub(super) task_runs: Vec<(Value, Value)>,
    pub(super) logs: Vec<Value>,
    pub(super) artifacts: Vec<Value>,
    pub(super) events: Vec<Value>,
    pub(super) graph: Value,
    pub(super) made: Vec<Self>,
}

/// Reads from one server.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a Rest,
}

impl Reader<'_> {
    /// How much there is: events, task runs, and those of them that have ended.
    pub(super) async fn amount(&self, id: &str) -> Result<[u64; 3]> {
        let rest = self.rest;
        let events = rest.post("/events/filter", &events_of(id, 1)?).await?;
        let of_run = json!({"flow_run_id": {"any_": [id]}});
        let all = rest.post("/task_runs/count", &json!({"task_runs": of_run})).await?;
        let ended = json!({"flow_run_id": {"any_": [id]},
            "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}});
        let ended = rest.post("/task_runs/count", &json!({"task_runs": ended})).await?;
        Ok([&events["total"], &all, &ended].map(|count| count.as_u64().unwrap_or_default()))
    }

    pub(super) fn raw(&self, id: String, label: String) -> BoxFuture<'_, Result<Raw>> {
        Box::pin(async move {
            let rest = self.rest;
            let run = rest.get(&format!("/flow_runs/{id}")).await?;
            let states = rest.get(&format!("/flow_run_states/?flow_run_id={id}")).await?;
            let of_run = json!({"flow_run_id": {"any_": [id]}});
            let task_runs = self.all("/task_runs/filter", &json!({"task_runs": of_run})).await?;
            let task_runs: Vec<(Value, Value)> = stream::iter(task_runs)
                .map(|task_run| async move {
                    let id = text(&task_run["id"]);
                    let states = rest.get(&format!("/task_run_states/?task_run_id={id}")).await?;
                    anyhow::Ok((task_run, states))
                })
                .buffered(REQUESTS)
                .try_collect()
                .await?;
            let logs = json!({"logs": of_run, "sort": "TIMESTAMP_ASC"});
            let logs = self.all("/logs/filter", &logs).await?;
            let artifacts = self.all("/artifacts/filter", &json!({"artifacts": of_run})).await?;
            let graph = rest.get(&format!("/flow_runs/{id}/graph-v2")).await?;
            let events = self.events(&id).await?;
            let children = json!({"flow_runs": {"parent_flow_run_id": {"any_": [id]}}});
            let mut children = self.all("/flow_runs/filter", &children).await?;
            children.sort_by_key(|child| text(&child["start_time"]).to_owned());
            let mut made = Vec::new();
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for child in children {
                let flow = rest.get(&format!("/flows/{}", text(&child["flow_id"]))).await?;
                let flow = text(&flow["name"]);
                let count = counts.entry(flow.to_owned()).or_default();
                *count += 1;
                made.push(self.raw(text(&child["id"]).to_owned(), format!("{flow} {count}")).await?);
            }
            Ok(Raw { label, run, states, task_runs, logs, artifacts, events, graph, made })
        })
    }

    /// All records of a list.
    async fn all(&self, path: &str, filter: &Value) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        loop {
            let mut body = filter.clone();
            if let Some(body) = body.as_object_mut() {
                body.insert("limit".to_owned(), json!(PAGE));
                body.insert("offset".to_owned(), json!(all.len()));
            }
            let Value::Array(page) = self.rest.post(path, &body).await? else {
                bail!("the answer of {path} is no list");
            };
            let last = page.len() < PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// All events that are about a flow run or related to it, oldest first.
    async fn events(&self, id: &str) -> Result<Vec<Value>> {
        let mut page = self.rest.post("/events/filter", &events_of(id, EVENTS)?).await?;
        let mut all = Vec::new();
        loop {
            all.extend(page["events"].as_array().context("a page without events")?.iter().cloned());
            let Some(next) = page["next_page"].as_str().and_then(|next| next.split_once("/api")) else {
                return Ok(all);
            };
            page = self.rest.get(next.1).await?;
        }
    }
}

/// Asks for the events that are about a flow run or related to it, oldest first.
fn events_of(id: &str, page: usize) -> Result<Value> {
    let now = Timestamp::now();
    let hour = SignedDuration::from_hours(1);
    Ok(json!({"limit": page, "filter": {
        "any_resource": {"id": [format!("prefect.flow-run.{id}")]},
        "occurred": {"since": now.checked_sub(hour)?, "until": now.checked_add(hour)?},
        "order": "ASC",
    }}))
}
