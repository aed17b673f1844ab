//! Jobs: one record, two faces. v3 knows one status message and ignores what it does not know; v4 has a
//! code and a message and refuses it.

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::reply::{Answer, Reply};
use super::state::{Request, State, Version, iso, satisfies};
use super::validate::Kind::{Object, Text};
use super::validate::Need::{Optional, Required};
use super::validate::{Field, complaints};

const TYPES: [&str; 3] = ["archive", "retrieve", "public"];

/// Status of a job that nobody has taken up yet.
const SUBMITTED: &str = "jobSubmitted";

const NEW_V4: [Field; 5] = [
    Field("type", Text, Required),
    Field("jobParams", Object, Required),
    Field("ownerUser", Text, Optional),
    Field("ownerGroup", Text, Optional),
    Field("contactEmail", Text, Optional),
];

const UPDATE_V4: [Field; 3] = [
    Field("statusCode", Text, Required),
    Field("statusMessage", Text, Required),
    Field("jobResultObject", Object, Optional),
];

/// A job, and every status it has had.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// The record as v4 shows it.
    pub record: Value,
    /// Status codes in the order in which they were set.
    pub history: Vec<String>,
}

impl Job {
    /// The record as v3 shows it. Its list of datasets is a field of its own there.
    fn v3(&self) -> Value {
        let record = &self.record;
        let mut params = record["jobParams"].clone();
        let datasets = params.as_object_mut().and_then(|params| params.remove("datasetList"));
        params["username"] = record["ownerUser"].clone();
        let mut job = json!({
            "_id": record["id"], "id": record["id"], "emailJobInitiator": record["contactEmail"],
            "type": record["type"], "creationTime": record["createdAt"], "jobParams": params,
            "jobStatusMessage": record["statusCode"], "datasetList": datasets.unwrap_or_else(|| json!([])),
            "jobResultObject": record["jobResultObject"],
        });
        if let Some(time) = record.get("executionTime") {
            job["executionTime"] = time.clone();
        }
        job
    }

    fn shown(&self, version: Version) -> Value {
        if version == Version::V3 { self.v3() } else { self.record.clone() }
    }

    fn pids(&self) -> Vec<&str> {
        let list = self.record["jobParams"]["datasetList"].as_array();
        list.into_iter().flatten().filter_map(|entry| entry["pid"].as_str()).collect()
    }
}

impl State {
    pub(super) fn post_job(&mut self, version: Version, body: &Value) -> Answer {
        if version == Version::V4 {
            let wrong = complaints(body, &NEW_V4);
            if !wrong.is_empty() {
                return Err(Reply::invalid(&wrong));
            }
        }
        let kind = body["type"].as_str().unwrap_or_default();
        if !TYPES.contains(&kind) {
            return Err(Reply::refused(&format!("Invalid job type: {kind}")));
        }
        let mut params = body["jobParams"].as_object().cloned().unwrap_or_default();
        let list = match version {
            Version::V3 => body.get("datasetList"),
            Version::V4 => params.get("datasetList"),
        };
        // A v4 job may be about no dataset at all; a v3 job may not.
        if version == Version::V3 || list.is_some() {
            self.check_datasets(list.unwrap_or(&Value::Null))?;
        }
        if let (Version::V3, Some(list)) = (version, list) {
            params.insert("datasetList".to_owned(), list.clone());
        }
        let email = if version == Version::V3 { "emailJobInitiator" } else { "contactEmail" };
        let mut record = self.new_job(kind, &Value::Object(params), body[email].as_str());
        for name in ["ownerUser", "ownerGroup", "executionTime"] {
            if let Some(value) = body.get(name) {
                record[name] = value.clone();
            }
        }
        if version == Version::V3 {
            // v3 knows one status, which stands for both.
            let status = body["jobStatusMessage"].as_str().unwrap_or(SUBMITTED);
            record["statusCode"] = json!(status);
            record["statusMessage"] = json!(status);
        }
        if let (Version::V3, Some(result)) = (version, body.get("jobResultObject").filter(|r| r.is_object()))
        {
            record["jobResultObject"] = result.clone();
        }
        let shown = self.insert_job(record).shown(version);
        Ok(Reply::created(shown))
    }

    /// The record of a job that has just been submitted.
    pub(super) fn new_job(&self, kind: &str, params: &Value, email: Option<&str>) -> Value {
        let now = iso(Timestamp::now());
        let id = Uuid::new_v4().to_string();
        json!({
            "_id": id, "id": id, "type": kind, "statusCode": SUBMITTED,
            "statusMessage": "Job submitted.", "jobParams": params, "ownerUser": self.username,
            "ownerGroup": "group1", "contactEmail": email.unwrap_or("owner@example.org"),
            "configVersion": "v1.0", "jobResultObject": {}, "createdAt": now, "updatedAt": now,
            "createdBy": self.username, "updatedBy": self.username, "accessGroups": [],
            "isPublished": false, "__v": 0,
        })
    }

    pub(super) fn insert_job(&mut self, record: Value) -> &Job {
        let id = record["id"].as_str().unwrap_or_default().to_owned();
        let history = vec![record["statusCode"].as_str().unwrap_or_default().to_owned()];
        self.jobs.entry(id).or_insert(Job { record, history })
    }

    /// Checks the list of datasets of a new job.
    fn check_datasets(&self, list: &Value) -> Result<(), Reply> {
        let entries = list.as_array().filter(|list| !list.is_empty());
        let entries = entries.ok_or_else(|| Reply::refused("List of passed datasets is empty."))?;
        let pid = |entry: &Value| entry["pid"].as_str().unwrap_or_default().to_owned();
        let absent: Vec<String> =
            entries.iter().map(pid).filter(|pid| !self.datasets.contains_key(pid)).collect();
        if !absent.is_empty() {
            let absent = absent.join(", ");
            return Err(Reply::refused(&format!("Datasets with pid {absent} do not exist.")));
        }
        let mut missing = Vec::new();
        for entry in entries {
            let files = entry["files"]
                .as_array()
                .ok_or_else(|| Reply::refused("In datasetList each 'files' field should be an array."))?;
            let known: Vec<&Value> = self
                .origdatablocks
                .iter()
                .filter(|block| block["datasetId"] == entry["pid"])
                .filter_map(|block| block["dataFileList"].as_array())
                .flatten()
                .map(|file| &file["path"])
                .collect();
            let unknown: Vec<&Value> = files.iter().filter(|file| !known.contains(file)).collect();
            if !unknown.is_empty() {
                missing.push(json!({"pid": entry["pid"], "nonExistFiles": unknown}));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Reply::refused_with("At least one requested file could not be found.", &Value::from(missing)))
    }

    fn job(&mut self, id: &str) -> Result<&mut Job, Reply> {
        self.jobs.get_mut(id).ok_or_else(|| Reply::refused("Invalid job id."))
    }

    pub(super) fn get_job(&mut self, version: Version, id: &str) -> Answer {
        self.job(id).map(|job| Reply::ok(job.shown(version)))
    }

    pub(super) fn patch_job(&mut self, version: Version, id: &str, body: &Value) -> Answer {
        let job = self.job(id)?.clone();
        if let Some(pid) = job.pids().into_iter().find(|pid| !self.datasets.contains_key(*pid)) {
            return Err(Reply::not_found(&format!("Unable to get a dataset. ([{pid}])")));
        }
        let (code, message) = match version {
            Version::V3 => (body.get("jobStatusMessage"), body.get("jobStatusMessage")),
            Version::V4 => {
                let wrong = complaints(body, &UPDATE_V4);
                if !wrong.is_empty() {
                    return Err(Reply::invalid(&wrong));
                }
                (body.get("statusCode"), body.get("statusMessage"))
            }
        };
        let result = body.get("jobResultObject");
        if result.is_some_and(|result| !result.is_object()) {
            return Err(Reply::invalid(&["jobResultObject must be an object".to_owned()]));
        }
        if code.is_some_and(|code| !code.is_string()) {
            return Err(Reply::invalid(&["jobStatusMessage must be a string".to_owned()]));
        }
        let username = self.username.clone();
        let job = self.job(id)?;
        let changes = [("statusCode", code), ("statusMessage", message), ("jobResultObject", result)];
        for (name, value) in changes {
            if let Some(value) = value {
                job.record[name] = value.clone();
            }
        }
        if let (Version::V3, Some(time)) = (version, body.get("executionTime")) {
            job.record["executionTime"] = time.clone();
        }
        job.record["updatedAt"] = json!(iso(Timestamp::now()));
        job.record["updatedBy"] = json!(username);
        if let Some(code) = code.and_then(Value::as_str) {
            job.history.push(code.to_owned());
        }
        Ok(Reply::ok(job.shown(version)))
    }

    pub(super) fn delete_job(&mut self, id: &str) -> Answer {
        self.job(id)?;
        self.jobs.remove(id);
        Ok(Reply::ok(json!({"acknowledged": true, "deletedCount": 1})))
    }

    /// `GET /jobs?filter=`: of use in v4 only.
    pub(super) fn list_jobs(&mut self, version: Version, request: &Request) -> Answer {
        let filter = request.json_query("filter")?;
        if let (Version::V3, Some(name)) =
            (version, filter.as_object().and_then(|filter| filter.keys().next()))
        {
            let inner = filter[name].as_object().and_then(|fields| fields.keys().next());
            let path = inner.map_or_else(|| name.clone(), |inner| format!("{name}.{inner}"));
            return Err(Reply::bad_request(&format!(
                "Property {path} should not exist in the filter object"
            )));
        }
        let clause = filter.get("where").cloned().unwrap_or_default();
        Ok(Reply::ok(self.jobs_where(version, &clause, &filter["limits"])))
    }

    /// `GET /jobs/fullquery` of v3.
    pub(super) fn query_jobs(&mut self, request: &Request) -> Answer {
        let (fields, limits) = (request.json_query("fields")?, request.json_query("limits")?);
        Ok(Reply::ok(self.jobs_where(Version::V3, &fields, &limits)))
    }

    fn jobs_where(&self, version: Version, clause: &Value, limits: &Value) -> Value {
        let mut found: Vec<Value> = self.jobs.values().map(|job| job.shown(version)).collect();
        found.retain(|job| satisfies(job, clause));
        let time = if version == Version::V3 { "creationTime" } else { "createdAt" };
        found.sort_by_key(|job| job[time].as_str().map(str::to_owned));
        if limits["sort"][time] == "desc" {
            found.reverse();
        }
        let count = |name: &str| limits[name].as_u64().and_then(|number| usize::try_from(number).ok());
        let limit = count("limit").unwrap_or(usize::MAX);
        found.into_iter().skip(count("skip").unwrap_or(0)).take(limit).collect()
    }

    /// `GET /jobs/datasetDetails?jobId=&datasetFields=`.
    pub(super) fn job_datasets(&mut self, request: &Request) -> Answer {
        let id = request.query.get("jobId").map(String::as_str).unwrap_or_default();
        let fields = request.json_query("datasetFields")?;
        let job = self.job(id)?.clone();
        let datasets = job.pids().into_iter().filter_map(|pid| self.datasets.get(pid));
        let shown = datasets.map(|dataset| {
            let wanted = |name: &String| fields.as_object().is_none_or(|fields| fields.contains_key(name));
            Value::Object(
                dataset
                    .iter()
                    .filter(|(name, _)| wanted(name))
                    .map(|(n, v)| (n.clone(), v.clone()))
                    .collect(),
            )
        });
        Ok(Reply::ok(shown.collect()))
    }
}
