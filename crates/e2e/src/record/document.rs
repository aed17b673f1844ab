//! Writing: what was read as one document, without what differs from run to run.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::normal::Names;
use super::read::Raw;
use super::text;

/// The task of the runs that stand for called deployments.
const CALL: &str = "prefect.deployments.flow_runs.run_deployment.";

/// Writes documents, with the names that it has learned.
#[derive(Default)]
pub(super) struct Writer {
    names: Names,
}

impl Writer {
    /// From now on `name` stands for this word.
    pub(super) fn word(&mut self, word: &str, name: &str) {
        self.names.word(word, name);
    }

    /// Names for all ids, before any is replaced.
    pub(super) fn learn(&mut self, raw: &Raw) {
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

    pub(super) fn document(&self, raw: &Raw) -> Map<String, Value> {
        let names = &self.names;
        let mut document = Map::new();
        let mut put = |key: &str, value: Value| document.insert(key.to_owned(), value);
        put("flow run", names.value(&raw.run));
        put("states", by_time(names, &raw.states));
        put(
            "logs",
            raw.logs.iter().filter(|log| log["task_run_id"].is_null()).map(|log| self.line(log)).collect(),
        );
        put("artifacts", self.artifacts(&raw.artifacts));
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

    /// Artifacts by key, the oldest of a key first.
    fn artifacts(&self, artifacts: &[Value]) -> Value {
        let mut ordered: Vec<&Value> = artifacts.iter().collect();
        ordered.sort_by_key(|artifact| text(&artifact["created"]).to_owned());
        let mut all = Map::new();
        for artifact in ordered {
            let mut plain = self.names.value(artifact);
            // Tables are JSON in text; how it is spaced says nothing.
            let table: Option<Value> = artifact["data"].as_str().and_then(|it| serde_json::from_str(it).ok());
            if let Some(table) = table.filter(|_| artifact["type"] == "table") {
                plain["data"] = table;
            }
            let key = text(&artifact["key"]);
            let versions = (2..).map(|number| format!("{key} ({number})"));
            let free = std::iter::once(key.to_owned()).chain(versions).find(|key| !all.contains_key(key));
            all.extend(free.map(|key| (key, plain)));
        }
        Value::Object(all)
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
