//! Work pools, their queues and their workers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{WorkPoolId, WorkQueueId};

/// A work pool as the server reports it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct WorkPool {
    /// The pool's id.
    pub id: WorkPoolId,
    /// The pool's name.
    pub name: String,
    /// The kind of its workers: `docker`, `process` …
    #[serde(rename = "type")]
    pub kind: String,
    /// How a job is made of job variables.
    #[serde(default)]
    pub base_job_template: BaseJobTemplate,
    /// Gives no runs out.
    #[serde(default)]
    pub is_paused: bool,
    /// Limit on concurrent runs.
    #[serde(default)]
    pub concurrency_limit: Option<u32>,
    /// `READY`, `NOT_READY` or `PAUSED`.
    #[serde(default)]
    pub status: Option<String>,
    /// The queue that runs go to unless they name one.
    #[serde(default)]
    pub default_queue_id: Option<WorkQueueId>,
    /// The description.
    #[serde(default)]
    pub description: Option<String>,
}

/// A base job template: what a job looks like, and the schema of the variables in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BaseJobTemplate {
    /// The job, with `{{ placeholders }}`.
    #[serde(default)]
    pub job_configuration: Map<String, Value>,
    /// JSON schema of the variables; its defaults count.
    #[serde(default)]
    pub variables: Map<String, Value>,
}

impl BaseJobTemplate {
    /// Whether the pool was made without one.
    pub fn is_empty(&self) -> bool {
        self.job_configuration.is_empty() && self.variables.is_empty()
    }
}

/// Body that creates a work pool.
#[derive(Debug, Clone, Serialize)]
pub struct NewWorkPool {
    /// The name; may not begin with `prefect`.
    pub name: String,
    /// The kind of its workers.
    #[serde(rename = "type")]
    pub kind: String,
    /// The base job template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_job_template: Option<BaseJobTemplate>,
    /// The description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Limit on concurrent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_limit: Option<u32>,
    /// Gives no runs out.
    pub is_paused: bool,
}

/// Body that changes a work pool; absent fields stay, an inner null removes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WorkPoolUpdate {
    /// The base job template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_job_template: Option<BaseJobTemplate>,
    /// The description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Limit on concurrent runs; `Some(None)` removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_limit: Option<Option<u32>>,
    /// Gives no runs out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_paused: Option<bool>,
}

/// A queue of a work pool.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct WorkQueue {
    /// The queue's id.
    pub id: WorkQueueId,
    /// The queue's name.
    pub name: String,
    /// Limit on concurrent runs.
    #[serde(default)]
    pub concurrency_limit: Option<u32>,
    /// Lower numbers go first.
    #[serde(default)]
    pub priority: Option<u32>,
    /// Gives no runs out.
    #[serde(default)]
    pub is_paused: bool,
    /// The description.
    #[serde(default)]
    pub description: Option<String>,
    /// The pool.
    #[serde(default)]
    pub work_pool_name: Option<String>,
}

/// A worker as the server knows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct WorkerRecord {
    /// Its name.
    pub name: String,
    /// When it was last heard.
    #[serde(default)]
    pub last_heartbeat_time: Option<jiff::Timestamp>,
    /// Seconds between its heartbeats.
    #[serde(default)]
    pub heartbeat_interval_seconds: Option<i64>,
    /// `ONLINE` or `OFFLINE`.
    #[serde(default)]
    pub status: Option<String>,
}

/// What may be set in a queue.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WorkQueueSettings {
    /// The name; only when it is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Limit on concurrent runs.
    pub concurrency_limit: Option<u32>,
    /// Lower numbers go first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Gives no runs out.
    pub is_paused: bool,
}
