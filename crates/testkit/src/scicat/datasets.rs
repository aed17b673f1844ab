//! Datasets and their lifecycle.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::reply::{Answer, Reply};
use super::state::{Request, State, Version, iso, object_id, satisfies};
use super::validate::Kind::{Anything, Boolean, Date, Integer, List, Object, Text};
use super::validate::Need::{Optional, Required};
use super::validate::{Field, complaints};

const LIFECYCLE: [Field; 15] = [
    Field("archivable", Boolean, Optional),
    Field("retrievable", Boolean, Optional),
    Field("publishable", Boolean, Optional),
    Field("isOnCentralDisk", Boolean, Optional),
    Field("retrieveIntegrityCheck", Boolean, Optional),
    Field("archiveStatusMessage", Text, Optional),
    Field("retrieveStatusMessage", Text, Optional),
    Field("exportedTo", Text, Optional),
    Field("storageLocation", Text, Optional),
    Field("archiveReturnMessage", Anything, Optional),
    Field("retrieveReturnMessage", Anything, Optional),
    Field("dateOfDiskPurging", Date, Optional),
    Field("archiveRetentionTime", Date, Optional),
    Field("dateOfPublishing", Date, Optional),
    Field("publishedOn", Date, Optional),
];

/// What a client may set on a dataset; `create` adds what is fixed afterwards.
const DATASET: [Field; 31] = [
    Field("ownerGroup", Text, Optional),
    Field("accessGroups", List, Optional),
    Field("instrumentGroup", Text, Optional),
    Field("owner", Text, Optional),
    Field("ownerEmail", Text, Optional),
    Field("contactEmail", Text, Optional),
    Field("sourceFolder", Text, Optional),
    Field("sourceFolderHost", Text, Optional),
    Field("size", Integer, Optional),
    Field("packedSize", Integer, Optional),
    Field("numberOfFiles", Integer, Optional),
    Field("numberOfFilesArchived", Integer, Optional),
    Field("creationTime", Date, Optional),
    Field("creationLocation", Text, Optional),
    Field("keywords", List, Optional),
    Field("description", Text, Optional),
    Field("datasetName", Text, Optional),
    Field("classification", Text, Optional),
    Field("isPublished", Boolean, Optional),
    Field("sharedWith", List, Optional),
    Field("techniques", List, Optional),
    Field("relationships", List, Optional),
    Field("datasetlifecycle", Object, Optional),
    Field("scientificMetadata", Object, Optional),
    Field("proposalId", Text, Optional),
    Field("sampleId", Text, Optional),
    Field("instrumentId", Text, Optional),
    Field("dataFormat", Text, Optional),
    Field("validationStatus", Text, Optional),
    Field("comment", Text, Optional),
    Field("license", Text, Optional),
];

const NEW_V3: [Field; 7] = [
    Field("pid", Text, Optional),
    Field("type", Text, Required),
    Field("principalInvestigator", Text, Optional),
    Field("investigator", Text, Optional),
    Field("inputDatasets", List, Optional),
    Field("usedSoftware", List, Optional),
    Field("version", Text, Optional),
];

const NEW_V4: [Field; 8] = [
    Field("pid", Text, Optional),
    Field("type", Text, Required),
    Field("principalInvestigators", List, Optional),
    Field("proposalIds", List, Optional),
    Field("sampleIds", List, Optional),
    Field("instrumentIds", List, Optional),
    Field("inputDatasets", List, Optional),
    Field("usedSoftware", List, Optional),
];

/// What every new dataset names, beside its `type`.
const REQUIRED: [&str; 6] =
    ["owner", "contactEmail", "sourceFolder", "creationTime", "ownerGroup", "creationLocation"];

impl State {
    /// The dataset, or the 404 of the dataset routes.
    pub(super) fn dataset(&mut self, pid: &str) -> Result<&mut Map<String, Value>, Reply> {
        self.datasets.get_mut(pid).ok_or_else(|| Reply::not_found(&format!("dataset: {pid} not found")))
    }

    pub(super) fn get_dataset(&mut self, pid: &str) -> Answer {
        self.dataset(pid).map(|dataset| Reply::ok(Value::Object(dataset.clone())))
    }

    pub(super) fn list_datasets(&mut self, request: &Request) -> Answer {
        let filter = request.json_query("filter")?;
        let clause = filter.get("where").cloned().unwrap_or_default();
        let relations: Vec<&str> = filter
            .get("include")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|include| {
                include.get("relation").and_then(Value::as_str).or_else(|| include.as_str())
            })
            .collect();
        let mut found = Vec::new();
        for dataset in self.datasets.values() {
            let mut dataset = Value::Object(dataset.clone());
            if !satisfies(&dataset, &clause) {
                continue;
            }
            for relation in &relations {
                let blocks = match *relation {
                    "datablocks" => &self.datablocks,
                    "origdatablocks" => &self.origdatablocks,
                    _ => continue,
                };
                let own: Vec<&Value> =
                    blocks.iter().filter(|block| block["datasetId"] == dataset["pid"]).collect();
                dataset[*relation] = json!(own);
            }
            found.push(dataset);
        }
        Ok(Reply::ok(Value::Array(found)))
    }

    pub(super) fn post_dataset(&mut self, version: Version, body: &Value) -> Answer {
        let special: &[Field] = if version == Version::V3 { &NEW_V3 } else { &NEW_V4 };
        let mut rules: Vec<Field> = DATASET.iter().chain(special).copied().collect();
        let mut required: Vec<&str> = REQUIRED.to_vec();
        match (version, body["type"].as_str()) {
            (Version::V3, Some("raw")) => required.push("principalInvestigator"),
            (Version::V3, Some("derived")) => {
                required.extend(["investigator", "inputDatasets", "usedSoftware"]);
            }
            (Version::V4, Some("raw")) => required.push("principalInvestigators"),
            _ => {}
        }
        for rule in &mut rules {
            if required.contains(&rule.0) {
                rule.2 = Required;
            }
        }
        let wrong = complaints(body, &rules);
        if !wrong.is_empty() {
            // The list of constraints is JSON inside of the message.
            let list: Vec<Value> = wrong.iter().map(|complaint| constraint(complaint)).collect();
            return Err(Reply::refused(&Value::from(list).to_string()));
        }
        let pid = match body["pid"].as_str() {
            Some(pid) => pid.to_owned(),
            None => format!("{}/{}", self.pid_prefix, Uuid::new_v4()),
        };
        if self.datasets.contains_key(&pid) {
            return Err(Reply::internal());
        }
        Ok(Reply::created(self.insert_dataset(&pid, body)))
    }

    /// Adds a dataset: the defaults, and over them what was sent.
    pub(super) fn insert_dataset(&mut self, pid: &str, sent: &Value) -> Value {
        let now = iso(Timestamp::now());
        let name = sent["sourceFolder"].as_str().map(|folder| {
            let parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
            parts.get(parts.len().saturating_sub(2)..).unwrap_or_default().join("/")
        });
        let mut dataset = json!({
            "ownerGroup": "group1", "accessGroups": [], "owner": "owner", "contactEmail": "owner@example.org",
            "sourceFolder": "/", "size": 0, "packedSize": 0, "numberOfFiles": 0, "numberOfFilesArchived": 0,
            "creationTime": now, "keywords": [], "datasetName": name,
            "classification": "IN=medium,AV=low,CO=low", "isPublished": false, "techniques": [],
            "sharedWith": [], "relationships": [], "scientificMetadata": {}, "proposalId": null,
            "type": "raw", "version": "3", "principalInvestigator": "owner", "creationLocation": "/",
            "sampleId": null, "instrumentId": null, "inputDatasets": [], "usedSoftware": [],
            "createdBy": self.username, "updatedBy": self.username, "createdAt": now, "updatedAt": now,
            "_id": pid, "__v": 0, "history": [], "principalInvestigators": ["owner"], "proposalIds": [null],
            "sampleIds": [null], "instrumentIds": [null],
        });
        if let (Some(fields), Some(sent)) = (dataset.as_object_mut(), sent.as_object()) {
            fields.extend(sent.clone());
            fields.insert("pid".to_owned(), json!(pid));
            fields.insert("datasetlifecycle".to_owned(), self.new_lifecycle(sent.get("datasetlifecycle")));
            self.datasets.insert(pid.to_owned(), fields.clone());
        }
        dataset
    }

    /// The general `PATCH`: what it names is overwritten, and a lifecycle in it starts from the defaults.
    pub(super) fn patch_dataset(&mut self, pid: &str, body: &Value) -> Answer {
        self.dataset(pid)?;
        let wrong = complaints(body, &DATASET);
        if !wrong.is_empty() {
            return Err(Reply::invalid(&wrong));
        }
        let lifecycle = body.get("datasetlifecycle");
        let wrong = lifecycle.map(|lifecycle| complaints(lifecycle, &LIFECYCLE)).unwrap_or_default();
        if !wrong.is_empty() {
            let wrong: Vec<String> = wrong.iter().map(|word| format!("datasetlifecycle.{word}")).collect();
            return Err(Reply::invalid(&wrong));
        }
        let lifecycle = lifecycle.map(|lifecycle| self.new_lifecycle(Some(lifecycle)));
        let username = self.username.clone();
        let dataset = self.dataset(pid)?;
        dataset.extend(body.as_object().cloned().unwrap_or_default());
        if let Some(lifecycle) = lifecycle {
            dataset.insert("datasetlifecycle".to_owned(), lifecycle);
        }
        touch(dataset, &username);
        let mut shown = dataset.clone();
        // Told by `GET`, but not here.
        shown.remove("history");
        Ok(Reply::ok(Value::Object(shown)))
    }

    pub(super) fn delete_dataset(&mut self, pid: &str) -> Answer {
        self.dataset(pid)?;
        let dataset = self.datasets.remove(pid).map(Value::Object).unwrap_or_default();
        self.origdatablocks.retain(|block| block["datasetId"] != pid);
        self.datablocks.retain(|block| block["datasetId"] != pid);
        Ok(Reply::ok(dataset))
    }

    pub(super) fn get_lifecycle(&mut self, pid: &str) -> Answer {
        self.dataset(pid).map(|dataset| Reply::ok(dataset["datasetlifecycle"].clone()))
    }

    /// The dedicated endpoint: merges, and echoes the whole lifecycle.
    pub(super) fn patch_lifecycle(&mut self, pid: &str, body: &Value) -> Answer {
        if !self.datasets.contains_key(pid) {
            return Err(Reply::not_found(&format!("dataset with pid {pid} not found")));
        }
        if body.is_null() || body.as_object().is_some_and(Map::is_empty) {
            return Err(Reply::bad_request("dataset lifecycle DTO must not be empty"));
        }
        let wrong = complaints(body, &LIFECYCLE);
        if !wrong.is_empty() {
            return Err(Reply::invalid(&wrong));
        }
        let username = self.username.clone();
        let dataset = self.dataset(pid)?;
        if let Some(lifecycle) = dataset.get_mut("datasetlifecycle").and_then(Value::as_object_mut) {
            lifecycle.extend(body.as_object().cloned().unwrap_or_default());
        }
        touch(dataset, &username);
        Ok(Reply::ok(dataset["datasetlifecycle"].clone()))
    }

    /// The defaults of a lifecycle, and over them what was sent.
    fn new_lifecycle(&self, sent: Option<&Value>) -> Value {
        let started = iso(self.started);
        let day = self.started.to_zoned(TimeZone::UTC).start_of_day();
        let day = iso(day.map_or(self.started, |day| day.timestamp()));
        let mut lifecycle = json!({
            "archivable": true, "retrievable": false, "publishable": false,
            "dateOfDiskPurging": started, "publishedOn": started, "isOnCentralDisk": true,
            "archiveStatusMessage": "datasetCreated", "retrieveStatusMessage": "",
            "retrieveIntegrityCheck": false, "_id": object_id(),
            "archiveRetentionTime": day, "dateOfPublishing": day,
        });
        if let (Some(fields), Some(sent)) = (lifecycle.as_object_mut(), sent.and_then(Value::as_object)) {
            fields.extend(sent.clone());
        }
        lifecycle
    }

    /// Adds to counters of a dataset; deletions add negative numbers.
    pub(super) fn count(&mut self, pid: &str, counters: &[(&str, i64)]) {
        let Some(dataset) = self.datasets.get_mut(pid) else { return };
        for (name, change) in counters {
            let sum = dataset.get(*name).and_then(Value::as_i64).unwrap_or(0) + change;
            dataset.insert((*name).to_owned(), json!(sum.max(0)));
        }
    }
}

fn touch(dataset: &mut Map<String, Value>, username: &str) {
    dataset.insert("updatedBy".to_owned(), json!(username));
    dataset.insert("updatedAt".to_owned(), json!(iso(Timestamp::now())));
}

/// A complaint in the form of the route for new datasets.
fn constraint(complaint: &str) -> Value {
    let words: Vec<&str> = complaint.split(' ').collect();
    match words.as_slice() {
        ["property", name, ..] => {
            json!({"property": name, "constraints": {"whitelistValidation": complaint}})
        }
        [name, ..] => json!({"property": name, "constraints": {"isValid": complaint}}),
        [] => Value::Null,
    }
}
