//! `OrigDatablocks`, the files as they were uploaded, and datablocks, the files as they were archived.

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::reply::{Answer, Reply};
use super::state::{Request, State, iso, object_id, satisfies};
use super::validate::Kind::{Date, Integer, NonEmptyList, Number, Text};
use super::validate::Need::{Optional, Required};
use super::validate::{Field, complaints};

const ORIG: [Field; 3] = [
    Field("size", Integer, Required),
    Field("dataFileList", NonEmptyList, Required),
    Field("chkAlg", Text, Optional),
];

const ARCHIVED: [Field; 6] = [
    Field("archiveId", Text, Required),
    Field("size", Integer, Required),
    Field("packedSize", Integer, Required),
    Field("version", Text, Required),
    Field("dataFileList", NonEmptyList, Required),
    Field("chkAlg", Text, Optional),
];

/// What the routes outside of a dataset take in addition.
const ROOT: [Field; 2] = [Field("datasetId", Text, Required), Field("ownerGroup", Text, Optional)];

const FILE: [Field; 8] = [
    Field("path", Text, Required),
    Field("size", Number, Required),
    Field("time", Date, Required),
    Field("chk", Text, Optional),
    Field("uid", Text, Optional),
    Field("gid", Text, Optional),
    Field("perm", Text, Optional),
    Field("type", Text, Optional),
];

impl State {
    pub(super) fn get_origdatablocks(&mut self, pid: &str) -> Answer {
        self.dataset(pid)?;
        Ok(Reply::ok(of_dataset(&self.origdatablocks, pid)))
    }

    pub(super) fn get_datablocks(&mut self, pid: &str) -> Answer {
        self.dataset(pid)?;
        Ok(Reply::ok(of_dataset(&self.datablocks, pid)))
    }

    /// The routes outside of a dataset, with a filter.
    pub(super) fn list_blocks(&mut self, request: &Request, kind: &str) -> Answer {
        let filter = request.json_query("filter")?;
        let clause = filter.get("where").cloned().unwrap_or_default();
        let blocks = if kind == "datablocks" { &self.datablocks } else { &self.origdatablocks };
        let found: Vec<&Value> = blocks.iter().filter(|block| satisfies(block, &clause)).collect();
        Ok(Reply::ok(json!(found)))
    }

    pub(super) fn post_origdatablock(&mut self, pid: Option<&str>, body: &Value) -> Answer {
        let pid = self.checked(pid, body, &ORIG)?;
        let block = self.block(&pid, body)?;
        self.count(&pid, &[("size", number(body, "size")), ("numberOfFiles", files(body))]);
        self.origdatablocks.push(block.clone());
        Ok(Reply::created(block))
    }

    pub(super) fn post_datablock(&mut self, pid: Option<&str>, body: &Value) -> Answer {
        let pid = self.checked(pid, body, &ARCHIVED)?;
        if self.datablocks.iter().any(|block| block["archiveId"] == body["archiveId"]) {
            return Err(Reply::internal());
        }
        let block = self.block(&pid, body)?;
        let counters = [("packedSize", number(body, "packedSize")), ("numberOfFilesArchived", files(body))];
        self.count(&pid, &counters);
        self.datablocks.push(block.clone());
        Ok(Reply::created(block))
    }

    /// Datablocks are written once: whatever a `PATCH` carries, something is missing.
    pub(super) fn patch_datablock() -> Reply {
        Reply::invalid(&[
            "archiveId must be a string".to_owned(),
            "size must be an integer number".to_owned(),
        ])
    }

    pub(super) fn delete_datablock(&mut self, pid: &str, id: &str) -> Answer {
        self.dataset(pid)?;
        let position =
            self.datablocks.iter().position(|block| block["datasetId"] == pid && block["_id"] == id);
        let position = position.ok_or_else(|| Reply::not_found(&format!("datablock: {id} not found")))?;
        let block = self.datablocks.remove(position);
        let counters =
            [("packedSize", -number(&block, "packedSize")), ("numberOfFilesArchived", -files(&block))];
        self.count(pid, &counters);
        Ok(Reply::empty())
    }

    pub(super) fn delete_datablocks(&mut self, pid: &str) -> Answer {
        let dataset = self.dataset(pid)?;
        dataset.insert("packedSize".to_owned(), json!(0));
        dataset.insert("numberOfFilesArchived".to_owned(), json!(0));
        let before = self.datablocks.len();
        self.datablocks.retain(|block| block["datasetId"] != pid);
        Ok(Reply::ok(json!({"count": before - self.datablocks.len()})))
    }

    /// Validates a new block and tells the dataset that it belongs to.
    fn checked(&mut self, pid: Option<&str>, body: &Value, rules: &[Field]) -> Result<String, Reply> {
        let mut rules = rules.to_vec();
        if pid.is_none() {
            rules.extend(ROOT);
        }
        let mut wrong = complaints(body, &rules);
        for (position, file) in body["dataFileList"].as_array().into_iter().flatten().enumerate() {
            wrong
                .extend(complaints(file, &FILE).iter().map(|word| format!("dataFileList.{position}.{word}")));
        }
        let pid = pid.or_else(|| body["datasetId"].as_str()).unwrap_or_default();
        if let (true, Some(_)) = (wrong.is_empty(), self.dataset(pid).ok()) {
            return Ok(pid.to_owned());
        }
        // A dataset that is absent is noticed before the body is looked at.
        self.dataset(pid)?;
        Err(Reply::invalid(&wrong))
    }

    /// The full record of a new block.
    fn block(&mut self, pid: &str, body: &Value) -> Result<Value, Reply> {
        let username = self.username.clone();
        let dataset = self.dataset(pid)?;
        let (id, now) = (Uuid::new_v4().to_string(), iso(Timestamp::now()));
        let mut block = json!({
            "_id": id, "id": id, "createdBy": username, "updatedBy": username,
            "ownerGroup": dataset["ownerGroup"], "accessGroups": dataset["accessGroups"],
            "isPublished": dataset["isPublished"], "createdAt": now, "updatedAt": now, "__v": 0,
        });
        if let (Some(fields), Some(sent)) = (block.as_object_mut(), body.as_object()) {
            fields.extend(sent.clone());
            fields.insert("datasetId".to_owned(), json!(pid));
        }
        for file in block["dataFileList"].as_array_mut().into_iter().flatten() {
            let id = object_id();
            file["_id"] = json!(id);
            file["id"] = json!(id);
        }
        Ok(block)
    }
}

fn of_dataset(blocks: &[Value], pid: &str) -> Value {
    blocks.iter().filter(|block| block["datasetId"] == pid).cloned().collect()
}

fn number(block: &Value, name: &str) -> i64 {
    block[name].as_i64().unwrap_or(0)
}

fn files(block: &Value) -> i64 {
    block["dataFileList"].as_array().map_or(0, |list| i64::try_from(list.len()).unwrap_or(i64::MAX))
}
