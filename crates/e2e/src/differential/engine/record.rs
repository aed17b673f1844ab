//! What the server holds of a run, and of those that it made: as one document, read from every page of the API that
//! tells something about it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::bench::Bench;
use super::drive::Played;
use super::normal::Names;

/// Time between two looks at records that are still on their way.
const LOOK: Duration = Duration::from_secs(2);
/// The largest page of most lists.
const PAGE: usize = 200;
/// The largest page of events.
const EVENTS: usize = 50;
/// The task of the runs that stand for called deployments.
const CALL: &str = "prefect.deployments.flow_runs.run_deployment.";
/// Requests under way at a time.
const REQUESTS: usize = 8;

/// What the server holds, once it has written down all that it was told.
pub(super) async fn settled(bench: &Bench, played: &Played) -> Result<Value> {
    let reader = Reader { bench, names: Names::default() };
    let started = Instant::now();
    let mut last = None;
    loop {
        let now = reader.amount(&played.run.to_string()).await?;
        if last == Some(now) {
            return reader.read(played).await;
        }
        if started.elapsed() > bench.deadline {
            bail!("the records do not come to rest");
        }
        last = Some(now);
        sleep(LOOK).await;
    }
}

struct Reader<'a> {
    bench: &'a Bench,
    names: Names,
}

/// The records of a flow run as the server tells them, and of the runs that it made.
struct Raw {
    label: String,
    run: Value,
    states: Value,
    /// With their states.
    task_runs: Vec<(Value, Value)>,
    logs: Vec<Value>,
    artifacts: Vec<Value>,
    events: Vec<Value>,
    graph: Value,
    made: Vec<Self>,
}

impl Reader<'_> {
    async fn read(mut self, played: &Played) -> Result<Value> {
        let raw = self.raw(played.run.to_string(), "run".to_owned()).await?;
        self.learn(&raw);
        self.names.word(played.side.deployment(), "<deployment>");
        self.names.word(&self.bench.results(played.side).display().to_string(), "<results>");
        let mut document = self.document(&raw);
        let mut slots = Map::new();
        for limit in played.scenario.limits {
            let found = self.bench.rest.get(&format!("/v2/concurrency_limits/{limit}")).await?;
            slots.insert((*limit).to_owned(), found["active_slots"].clone());
        }
        document.insert("slots".to_owned(), Value::Object(slots));
        Ok(Value::Object(document))
    }

    /// How much there is: events, task runs, and those of them that have ended.
    async fn amount(&self, id: &str) -> Result<[u64; 3]> {
        let rest = &self.bench.rest;
        let events = rest.post("/events/filter", &events_of(id, 1)?).await?;
        let of_run = json!({"flow_run_id": {"any_": [id]}});
        let all = rest.post("/task_runs/count", &json!({"task_runs": of_run})).await?;
        let ended = json!({"flow_run_id": {"any_": [id]},
            "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}});
        let ended = rest.post("/task_runs/count", &json!({"task_runs": ended})).await?;
        Ok([&events["total"], &all, &ended].map(|count| count.as_u64().unwrap_or_default()))
    }

    fn raw(&self, id: String, label: String) -> BoxFuture<'_, Result<Raw>> {
        Box::pin(async move {
            let rest = &self.bench.rest;
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
            let Value::Array(page) = self.bench.rest.post(path, &body).await? else {
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
        let mut page = self.bench.rest.post("/events/filter", &events_of(id, EVENTS)?).await?;
        let mut all = Vec::new();
        loop {
            all.extend(page["events"].as_array().context("a page without events")?.iter().cloned());
            let Some(next) = page["next_page"].as_str().and_then(|next| next.split_once("/api")) else {
                return Ok(all);
            };
            page = self.bench.rest.get(next.1).await?;
        }
    }

    /// Names for all ids, before any is replaced.
    fn learn(&mut self, raw: &Raw) {
        self.names.id(text(&raw.run["id"]), raw.label.clone());
        self.names.id(text(&raw.run["flow_id"]), "<flow>");
        let name = text(&raw.run["name"]);
        // The server's random names are words; those of templates have a number in them.
        if raw.label != "run" && !name.chars().any(|c| c.is_ascii_digit()) {
            self.names.word(name, raw.label.clone());
        }
        for (task_run, _) in &raw.task_runs {
            let id = text(&task_run["id"]);
            if text(&task_run["task_key"]).starts_with(CALL) {
                // Python leaves its name to the server.
                self.names.word(text(&task_run["name"]), "<call>");
                self.names.id(id, "<call>");
            } else {
                let name = self.names.text(text(&task_run["name"]));
                self.names.id(id, name);
            }
        }
        for event in &raw.events {
            let name = text(&event["event"]).rsplit('.').next().unwrap_or_default();
            self.names.id(text(&event["id"]), format!("<{name}>"));
        }
        for made in &raw.made {
            self.learn(made);
        }
    }

    fn document(&self, raw: &Raw) -> Map<String, Value> {
        let names = &self.names;
        let mut document = Map::new();
        let mut put = |key: &str, value: Value| document.insert(key.to_owned(), value);
        put("flow run", names.value(&raw.run));
        put("states", by_time(names, &raw.states));
        put(
            "logs",
            raw.logs.iter().filter(|log| log["task_run_id"].is_null()).map(|log| self.line(log)).collect(),
        );
        let artifact = |artifact: &Value| {
            let mut plain = names.value(artifact);
            // Tables are JSON in text; how it is spaced says nothing.
            let table: Option<Value> = artifact["data"].as_str().and_then(|it| serde_json::from_str(it).ok());
            if let Some(table) = table.filter(|_| artifact["type"] == "table") {
                plain["data"] = table;
            }
            (text(&artifact["key"]).to_owned(), plain)
        };
        let artifacts = raw.artifacts.iter().map(artifact);
        put("artifacts", Value::Object(artifacts.collect()));
        put("graph", self.graph(&raw.graph));
        put("task runs", self.task_runs(raw));
        let task_runs: Vec<&str> = raw.task_runs.iter().map(|(task_run, _)| text(&task_run["id"])).collect();
        let about_tasks = |event: &&Value| {
            let id = text(&event["resource"]["prefect.resource.id"]).rsplit('.').next().unwrap_or_default();
            task_runs.contains(&id)
        };
        let mut events: Vec<Value> =
            raw.events.iter().filter(|event| !about_tasks(event)).map(|event| self.event(event)).collect();
        // How often a run tells that it is alive depends on how long it takes.
        events.dedup();
        put("events", events.into());
        for made in &raw.made {
            put(&format!("made: {}", made.label), Value::Object(self.document(made)));
        }
        document
    }

    /// Task runs by name. Those of one name that are the same in all are counted.
    fn task_runs(&self, raw: &Raw) -> Value {
        let mut ordered: Vec<&(Value, Value)> = raw.task_runs.iter().collect();
        ordered.sort_by_key(|(task_run, _)| text(&task_run["expected_start_time"]).to_owned());
        let mut by_name: BTreeMap<String, Vec<(usize, Value)>> = BTreeMap::new();
        for (task_run, states) in ordered {
            let id = &task_run["id"];
            let logs = raw.logs.iter().filter(|log| log["task_run_id"] == *id);
            let resource = format!("prefect.task-run.{}", text(id));
            let events =
                raw.events.iter().filter(|event| event["resource"]["prefect.resource.id"] == resource);
            let document = json!({
                "task run": self.task_run(task_run),
                "states": by_time(&self.names, states),
                "logs": logs.map(|log| self.line(log)).collect::<Vec<_>>(),
                "events": events.map(|event| self.event(event)).collect::<Vec<_>>(),
            });
            let same_name = by_name.entry(self.names.text(text(&task_run["name"]))).or_default();
            match same_name.iter_mut().find(|(_, known)| *known == document) {
                Some((count, _)) => *count += 1,
                None => same_name.push((1, document)),
            }
        }
        let mut all = Map::new();
        for (name, variants) in by_name {
            for (index, (count, mut document)) in variants.into_iter().enumerate() {
                if let Some(document) = document.as_object_mut() {
                    document.insert("count".to_owned(), json!(count));
                }
                let name = if index == 0 { name.clone() } else { format!("{name} ({})", index + 1) };
                all.insert(name, document);
            }
        }
        Value::Object(all)
    }

    /// A task run; what is random or a digest of source code in its keys is taken out.
    fn task_run(&self, task_run: &Value) -> Value {
        let mut plain = self.names.value(task_run);
        if let Some(plain) = plain.as_object_mut() {
            let key = text(&task_run["task_key"]);
            let key = match key.rsplit_once('-') {
                Some((name, digest)) if digest.len() == 8 => format!("{name}-<digest>"),
                _ => self.names.text(key),
            };
            plain.insert("task_key".to_owned(), key.into());
        }
        plain
    }

    fn line(&self, log: &Value) -> Value {
        let level = match log["level"].as_u64().unwrap_or_default() {
            10 => "DEBUG".to_owned(),
            20 => "INFO".to_owned(),
            30 => "WARNING".to_owned(),
            40 => "ERROR".to_owned(),
            50 => "CRITICAL".to_owned(),
            other => other.to_string(),
        };
        format!("{level} {}: {}", text(&log["name"]), self.names.text(text(&log["message"]))).into()
    }

    /// An event in one line: what happened to what, after what, and whom it relates to.
    fn event(&self, event: &Value) -> Value {
        let kind = text(&event["resource"]["prefect.resource.id"]);
        let kind = self.names.text(kind);
        let follows = event["follows"].as_str().map(|id| format!(" after {}", self.names.text(id)));
        let mut related: Vec<String> = event["related"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|related| {
                let name = related.get("prefect.resource.name").map(|name| self.names.text(text(name)));
                format!("{}={}", text(&related["prefect.resource.role"]), name.unwrap_or_default())
            })
            .collect();
        related.sort();
        let payload =
            event["payload"].as_object().map(|it| it.keys().cloned().collect::<Vec<_>>().join(", "));
        format!(
            "{} of {kind}{} [{}] {{{}}}",
            text(&event["event"]),
            follows.unwrap_or_default(),
            related.join(", "),
            payload.unwrap_or_default()
        )
        .into()
    }

    /// The nodes of the graph with their edges, by name.
    fn graph(&self, graph: &Value) -> Value {
        let label = |id: &Value| self.names.text(text(id));
        let labels = |list: &Value| {
            let mut labels: Vec<String> =
                list.as_array().into_iter().flatten().map(|item| label(&item["id"])).collect();
            labels.sort();
            labels.join(", ")
        };
        let mut nodes: BTreeMap<String, usize> = BTreeMap::new();
        let mut count = |node: String| *nodes.entry(node).or_default() += 1;
        for node in graph["nodes"].as_array().into_iter().flatten().filter_map(|node| node.get(1)) {
            count(format!(
                "{} {} {}: parents [{}], children [{}], inside [{}], artifacts [{}]",
                text(&node["kind"]),
                self.names.text(text(&node["label"])),
                text(&node["state_type"]),
                labels(&node["parents"]),
                labels(&node["children"]),
                labels(&node["encapsulating"]),
                kinds(&node["artifacts"]),
            ));
        }
        for root in graph["root_node_ids"].as_array().into_iter().flatten() {
            count(format!("root {}", label(root)));
        }
        for state in graph["states"].as_array().into_iter().flatten() {
            count(format!("state {} {}", text(&state["type"]), text(&state["name"])));
        }
        count(format!("artifacts [{}]", kinds(&graph["artifacts"])));
        let line = |(node, count): (String, usize)| Value::String(format!("{count} x {node}"));
        nodes.into_iter().map(line).collect()
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

fn kinds(artifacts: &Value) -> String {
    let kinds = artifacts.as_array().into_iter().flatten().map(|artifact| text(&artifact["type"]));
    let mut kinds: Vec<&str> = kinds.collect();
    kinds.sort_unstable();
    kinds.join(", ")
}

/// States, oldest first.
fn by_time(names: &Names, states: &Value) -> Value {
    let mut states: Vec<&Value> = states.as_array().into_iter().flatten().collect();
    states.sort_by_key(|state| text(&state["timestamp"]).to_owned());
    let numbered = states.iter().enumerate();
    let entry = |(index, state): (usize, &&Value)| {
        (format!("{} {}", index + 1, text(&state["name"])), names.value(state))
    };
    Value::Object(numbered.map(entry).collect())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
