//! The state and its routes, without any I/O: a request goes in, a reply comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Options;
use super::jobs::Job;
use super::reply::{Answer, Reply};

/// The face of the API that a request speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V3,
    V4,
}

/// A request, parsed.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub method: String,
    /// As it was sent, for messages.
    pub path: String,
    pub version: Option<Version>,
    /// Decoded segments after the version: an encoded slash stays inside of its segment.
    pub segments: Vec<String>,
    pub query: BTreeMap<String, String>,
    /// `Null` when there is none.
    pub body: Value,
    pub token: Option<String>,
}

impl Request {
    /// A query parameter that holds JSON, `Null` when it is absent.
    pub(super) fn json_query(&self, name: &str) -> Result<Value, Reply> {
        let Some(text) = self.query.get(name) else { return Ok(Value::Null) };
        serde_json::from_str(text).map_err(|_| Reply::bad_request(&format!("Invalid JSON in {name}")))
    }
}

/// Datasets, blocks, jobs and tokens.
#[derive(Debug)]
pub(super) struct State {
    pub username: String,
    pub password: SecretString,
    pub user_id: String,
    pub token_life: Duration,
    pub pid_prefix: String,
    /// Default of two dates of a lifecycle, computed once as the backend does.
    pub started: Timestamp,
    pub tokens: BTreeMap<String, Timestamp>,
    pub datasets: BTreeMap<String, Map<String, Value>>,
    pub origdatablocks: Vec<Value>,
    pub datablocks: Vec<Value>,
    pub jobs: BTreeMap<String, Job>,
}

impl State {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            username: options.username.clone(),
            password: options.password.clone(),
            user_id: object_id(),
            token_life: options.token_life,
            pid_prefix: options.pid_prefix.clone(),
            started: Timestamp::now(),
            tokens: BTreeMap::new(),
            datasets: BTreeMap::new(),
            origdatablocks: Vec::new(),
            datablocks: Vec::new(),
            jobs: BTreeMap::new(),
        }
    }

    /// Handles one request.
    pub(super) fn handle(&mut self, request: &Request) -> Reply {
        self.route(request).unwrap_or_else(|refusal| refusal)
    }

    fn route(&mut self, request: &Request) -> Answer {
        let no_route = || Reply::not_found(&format!("Cannot {} {}", request.method, request.path));
        let version = request.version.ok_or_else(no_route)?;
        let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
        match (request.method.as_str(), segments.as_slice()) {
            ("GET", ["health"]) => {
                return Ok(Reply::ok(json!({"status": "ok", "info": {"mongodb": {"status": "up"}}})));
            }
            ("POST", ["auth", "login"]) => return self.login(request),
            ("GET", ["auth", "whoami"]) => return Ok(self.whoami(request)),
            ("POST", ["auth", "logout"]) => return Ok(self.logout(request)),
            _ => {}
        }
        let allowed = if self.is_valid(request) { Ok(()) } else { Err(Reply::forbidden()) };
        match (request.method.as_str(), segments.as_slice()) {
            (method, ["datasets", rest @ ..]) => match (method, rest) {
                ("GET", []) => allowed.and_then(|()| self.list_datasets(request)),
                ("POST", []) => allowed.and_then(|()| self.post_dataset(version, &request.body)),
                ("GET", [pid]) => allowed.and_then(|()| self.get_dataset(pid)),
                ("PATCH", [pid]) => allowed.and_then(|()| self.patch_dataset(pid, &request.body)),
                ("DELETE", [pid]) => allowed.and_then(|()| self.delete_dataset(pid)),
                ("GET", [pid, "datasetlifecycle"]) => allowed.and_then(|()| self.get_lifecycle(pid)),
                ("PATCH", [pid, "datasetlifecycle"]) => {
                    allowed.and_then(|()| self.patch_lifecycle(pid, &request.body))
                }
                ("GET", [pid, "origdatablocks"]) => allowed.and_then(|()| self.get_origdatablocks(pid)),
                ("POST", [pid, "origdatablocks"]) => {
                    allowed.and_then(|()| self.post_origdatablock(Some(pid), &request.body))
                }
                ("GET", [pid, "datablocks"]) => allowed.and_then(|()| self.get_datablocks(pid)),
                ("POST", [pid, "datablocks"]) => {
                    allowed.and_then(|()| self.post_datablock(Some(pid), &request.body))
                }
                ("DELETE", [pid, "datablocks"]) => allowed.and_then(|()| self.delete_datablocks(pid)),
                ("PATCH", [_, "datablocks", _]) => allowed.and_then(|()| Err(Self::patch_datablock())),
                ("DELETE", [pid, "datablocks", id]) => allowed.and_then(|()| self.delete_datablock(pid, id)),
                _ => Err(no_route()),
            },
            ("GET", ["origdatablocks"]) => allowed.and_then(|()| self.list_blocks(request, "origdatablocks")),
            ("POST", ["origdatablocks"]) => {
                allowed.and_then(|()| self.post_origdatablock(None, &request.body))
            }
            ("GET", ["datablocks"]) => allowed.and_then(|()| self.list_blocks(request, "datablocks")),
            ("POST", ["datablocks"]) => allowed.and_then(|()| self.post_datablock(None, &request.body)),
            (method, ["jobs", rest @ ..]) => match (method, rest) {
                ("POST", []) => allowed.and_then(|()| self.post_job(version, &request.body)),
                ("GET", []) => allowed.and_then(|()| self.list_jobs(version, request)),
                ("GET", ["fullquery"]) => allowed.and_then(|()| self.query_jobs(request)),
                ("GET", ["datasetDetails"]) => allowed.and_then(|()| self.job_datasets(request)),
                ("GET", [id]) => allowed.and_then(|()| self.get_job(version, id)),
                ("PATCH", [id]) => allowed.and_then(|()| self.patch_job(version, id, &request.body)),
                ("DELETE", [id]) => allowed.and_then(|()| self.delete_job(id)),
                _ => Err(no_route()),
            },
            _ => Err(no_route()),
        }
    }
}

/// A time as the backend writes it.
pub(super) fn iso(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// An id as `MongoDB` makes them: 24 hexadecimal digits.
pub(super) fn object_id() -> String {
    Uuid::new_v4().simple().to_string().chars().take(24).collect()
}

/// The value at a dotted path; lists are looked into.
pub(super) fn matches(value: &Value, path: &[&str], wanted: &Value) -> bool {
    match (value, path) {
        (Value::Array(list), _) if !path.is_empty() => list.iter().any(|item| matches(item, path, wanted)),
        (_, [name, rest @ ..]) => value.get(*name).is_some_and(|inner| matches(inner, rest, wanted)),
        (Value::Array(list), []) if !wanted.is_array() => list.contains(wanted),
        (_, []) => match wanted.get("inq").or_else(|| wanted.get("$in")).and_then(Value::as_array) {
            Some(choices) => choices.contains(value),
            None => value == wanted,
        },
    }
}

/// Whether a record has every field that a `where` clause asks for.
pub(super) fn satisfies(record: &Value, clause: &Value) -> bool {
    clause.as_object().is_none_or(|fields| {
        fields.iter().all(|(name, wanted)| matches(record, &name.split('.').collect::<Vec<_>>(), wanted))
    })
}
