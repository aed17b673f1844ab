//! The catalogue as a test holds it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Options;
use super::reply::Reply;
use super::state::{Request, State};
use crate::faults::Faults;

/// A request as it was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// HTTP method.
    pub method: String,
    /// Path as it was sent, encoded, without the query.
    pub path: String,
    /// Query as it was sent.
    pub query: Option<String>,
    /// Body, if it was JSON or a form. Passwords are left out.
    pub body: Option<Value>,
    /// Status of the answer; `None` when the connection was cut.
    pub status: Option<u16>,
}

/// State, faults and records of one catalogue. Records are JSON as the API shows it.
#[derive(Debug)]
pub struct Catalogue {
    state: Mutex<State>,
    faults: Faults,
    requests: Mutex<Vec<Recorded>>,
}

impl Catalogue {
    pub(super) fn new(options: &Options) -> Self {
        Self { state: Mutex::new(State::new(options)), faults: Faults::default(), requests: Mutex::default() }
    }

    /// Adds a fresh dataset.
    pub fn create_dataset(&self, pid: &str) -> Value {
        let folder = format!("/data/{pid}");
        self.state().insert_dataset(pid, &json!({"sourceFolder": folder}))
    }

    /// A dataset.
    pub fn dataset(&self, pid: &str) -> Option<Value> {
        self.state().datasets.get(pid).cloned().map(Value::Object)
    }

    /// The lifecycle of a dataset.
    pub fn lifecycle(&self, pid: &str) -> Option<Value> {
        self.dataset(pid).map(|dataset| dataset["datasetlifecycle"].clone())
    }

    /// Overwrites fields of a dataset, past every rule; a lifecycle in it is merged.
    pub fn patch_dataset(&self, pid: &str, fields: &Value) {
        let mut state = self.state();
        let Some(dataset) = state.datasets.get_mut(pid) else { return };
        for (name, value) in fields.as_object().into_iter().flatten() {
            match (name.as_str(), dataset.get_mut(name).and_then(Value::as_object_mut), value.as_object()) {
                ("datasetlifecycle", Some(lifecycle), Some(value)) => lifecycle.extend(value.clone()),
                _ => {
                    dataset.insert(name.clone(), value.clone());
                }
            }
        }
    }

    /// Removes a dataset and its blocks.
    pub fn delete_dataset(&self, pid: &str) -> bool {
        self.state().delete_dataset(pid).is_ok()
    }

    /// Adds the list of files that a user claims to have uploaded: `path`, `size`, `time`, and `chk` if known.
    /// Panics when the service would have refused it.
    pub fn add_origdatablock(&self, pid: &str, files: &[Value]) -> Value {
        let size: u64 = files.iter().filter_map(|file| file["size"].as_u64()).sum();
        let body = json!({"size": size, "chkAlg": "md5", "dataFileList": files});
        let reply = self.state().post_origdatablock(Some(pid), &body);
        accepted(reply)
    }

    /// The origdatablocks of a dataset.
    pub fn origdatablocks(&self, pid: &str) -> Vec<Value> {
        let state = self.state();
        state.origdatablocks.iter().filter(|block| block["datasetId"] == pid).cloned().collect()
    }

    /// The datablocks of a dataset.
    pub fn datablocks(&self, pid: &str) -> Vec<Value> {
        let state = self.state();
        state.datablocks.iter().filter(|block| block["datasetId"] == pid).cloned().collect()
    }

    /// Adds a datablock, as an earlier archival would have. Panics when the service would have refused it.
    pub fn add_datablock(&self, pid: &str, body: &Value) -> Value {
        let reply = self.state().post_datablock(Some(pid), body);
        accepted(reply)
    }

    /// Adds a job about whole datasets in the form of v3 and tells its id.
    pub fn create_job(&self, kind: &str, pids: &[&str]) -> String {
        let mut state = self.state();
        let list: Vec<Value> = pids.iter().map(|pid| json!({"pid": pid, "files": []})).collect();
        let params = json!({"datasetList": list});
        let record = state.new_job(kind, &params, None);
        let id = record["id"].as_str().unwrap_or_default().to_owned();
        state.insert_job(record);
        id
    }

    /// A job, as v4 shows it.
    pub fn job(&self, id: &str) -> Option<Value> {
        self.state().jobs.get(id).map(|job| job.record.clone())
    }

    /// Every status code that a job has had, in order.
    pub fn job_history(&self, id: &str) -> Vec<String> {
        self.state().jobs.get(id).map(|job| job.history.clone()).unwrap_or_default()
    }

    /// Every request so far, in the order of the answers.
    pub fn requests(&self) -> Vec<Recorded> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Makes every token so far invalid.
    pub fn expire_tokens(&self) {
        self.state().tokens.values_mut().for_each(|expiry| *expiry = Timestamp::UNIX_EPOCH);
    }

    /// The faults to inject; `what` is the HTTP method, the subject the decoded path.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(super) fn handle(&self, request: &Request) -> Reply {
        self.state().handle(request)
    }

    pub(super) fn record(&self, request: Recorded) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::panic, reason = "a test prepared what the service would refuse: the test is wrong")]
fn accepted(reply: Result<Reply, Reply>) -> Value {
    match reply {
        Ok(reply) => reply.body.unwrap_or_default(),
        Err(refusal) => panic!("the catalogue refuses this: {:?}", refusal.body),
    }
}
