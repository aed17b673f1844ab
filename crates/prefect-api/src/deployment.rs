//! Deployments: a flow with a work pool, parameters, schedules and job variables.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{ConcurrencyLimitId, DeploymentId, FlowId, WorkQueueId};

/// A deployment as the server reports it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Deployment {
    /// The deployment's id.
    pub id: DeploymentId,
    /// The deployment's name, unique within its flow.
    pub name: String,
    /// The flow.
    pub flow_id: FlowId,
    /// When it last changed.
    #[serde(default)]
    pub updated: Option<Timestamp>,
    /// The version.
    #[serde(default)]
    pub version: Option<String>,
    /// The description.
    #[serde(default)]
    pub description: Option<String>,
    /// Schedules are off.
    #[serde(default)]
    pub paused: bool,
    /// Schedules, in Prefect's form, in any order.
    #[serde(default)]
    pub schedules: Vec<Value>,
    /// Refuse runs whose parameters break the schema.
    #[serde(default)]
    pub enforce_parameter_schema: bool,
    /// Default parameters.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Schema of the parameters.
    #[serde(default)]
    pub parameter_openapi_schema: Option<Value>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Job variables.
    #[serde(default)]
    pub job_variables: Map<String, Value>,
    /// The queue.
    #[serde(default)]
    pub work_queue_name: Option<String>,
    /// The queue's id.
    #[serde(default)]
    pub work_queue_id: Option<WorkQueueId>,
    /// The pool.
    #[serde(default)]
    pub work_pool_name: Option<String>,
    /// Where the flow is: `path/file.py:function`, or a flow's name for a Rust binary.
    #[serde(default)]
    pub entrypoint: Option<String>,
    /// What a Python runner does before it loads the flow.
    #[serde(default)]
    pub pull_steps: Option<Vec<Value>>,
    /// The limit on concurrent runs; `concurrency_limit` itself is always null (contract §7.1).
    #[serde(default)]
    pub global_concurrency_limit: Option<GlobalConcurrencyLimit>,
    /// What happens when the limit is reached.
    #[serde(default)]
    pub concurrency_options: Option<ConcurrencyOptions>,
}

/// What happens when a deployment's concurrency limit is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConcurrencyOptions {
    /// `ENQUEUE` or `CANCEL_NEW`.
    pub collision_strategy: String,
    /// Seconds that a claimed run may take to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<u64>,
}

/// Body that creates a deployment; on an existing (flow, name) it is an upsert.
#[derive(Debug, Clone, Serialize)]
pub struct NewDeployment {
    /// The name.
    pub name: String,
    /// The flow.
    pub flow_id: FlowId,
    /// What create and update have in common.
    #[serde(flatten)]
    pub settings: DeploymentSettings,
    /// Refuse runs whose parameters break the schema.
    pub enforce_parameter_schema: bool,
}

/// What may be changed in a deployment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DeploymentSettings {
    /// Schedules are off.
    pub paused: bool,
    /// Schedules, in Prefect's form.
    pub schedules: Vec<Value>,
    /// Limit on concurrent runs; null removes it.
    pub concurrency_limit: Option<u32>,
    /// What happens when it is reached.
    pub concurrency_options: Option<ConcurrencyOptions>,
    /// Default parameters.
    pub parameters: Map<String, Value>,
    /// Schema of the parameters: the form in the UI.
    pub parameter_openapi_schema: Value,
    /// Tags.
    pub tags: Vec<String>,
    /// What a Python runner does before it loads the flow.
    pub pull_steps: Option<Vec<Value>>,
    /// The queue; created if it does not exist.
    pub work_queue_name: Option<String>,
    /// The pool; must exist.
    pub work_pool_name: Option<String>,
    /// The description.
    pub description: Option<String>,
    /// Where the flow is.
    pub entrypoint: Option<String>,
    /// The version.
    pub version: Option<String>,
    /// Job variables.
    pub job_variables: Map<String, Value>,
}

/// A global (v2) concurrency limit. Tag limits are those named `tag:<tag>`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GlobalConcurrencyLimit {
    /// The limit's id.
    pub id: ConcurrencyLimitId,
    /// The limit's name.
    pub name: String,
    /// How many slots it has.
    pub limit: u32,
    /// How many are taken.
    #[serde(default)]
    pub active_slots: u32,
    /// Whether it counts.
    #[serde(default)]
    pub active: bool,
    /// Slots that come back each second, for rate limits.
    #[serde(default)]
    pub slot_decay_per_second: f64,
}

/// Answer to `increment-with-lease`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lease {
    /// The lease.
    pub lease_id: crate::id::LeaseId,
    /// The limits that it holds slots of; an unknown name is silently absent (contract §7.2).
    #[serde(default)]
    pub limits: Vec<LeasedLimit>,
}

/// One limit of a [`Lease`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LeasedLimit {
    /// The limit's id.
    pub id: ConcurrencyLimitId,
    /// The limit's name.
    pub name: String,
    /// How many slots it has.
    pub limit: u32,
}
