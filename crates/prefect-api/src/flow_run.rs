//! Flows, flow runs and the parent task runs of subflows.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{DeploymentId, FlowId, FlowRunId, TaskRunId, WorkPoolId, WorkQueueId};
use crate::state::{NewState, State, StateType};

/// A flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The flow's id.
    pub id: FlowId,
    /// The flow's name.
    pub name: String,
    /// What else the server tells of it: names of containers may refer to all of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// How the server retries and pauses a run. It is replaced as a whole by a PATCH, hence read, changed and
/// sent back with every field (contract §3.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowRunPolicy {
    /// Prefect 2's number of retries.
    pub max_retries: u32,
    /// Prefect 2's delay, in seconds.
    pub retry_delay_seconds: f64,
    /// How often a failed run is tried again.
    pub retries: Option<u32>,
    /// Seconds before a retry.
    pub retry_delay: Option<u64>,
    /// The pauses that have fired.
    pub pause_keys: Option<Vec<String>>,
    /// The run goes on after a pause.
    pub resuming: Option<bool>,
    /// `in_process` or `reschedule`.
    pub retry_type: Option<String>,
}

/// A flow run as the server reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowRun {
    /// The run's id.
    pub id: FlowRunId,
    /// The run's name.
    pub name: String,
    /// The flow that runs.
    pub flow_id: FlowId,
    /// The deployment that it was created from.
    #[serde(default)]
    pub deployment_id: Option<DeploymentId>,
    /// The queue that it waits in.
    #[serde(default)]
    pub work_queue_id: Option<WorkQueueId>,
    /// The name of that queue; null in polls.
    #[serde(default)]
    pub work_queue_name: Option<String>,
    /// The pool that it waits in.
    #[serde(default)]
    pub work_pool_id: Option<WorkPoolId>,
    /// The name of that pool.
    #[serde(default)]
    pub work_pool_name: Option<String>,
    /// The version of the flow's code.
    #[serde(default)]
    pub flow_version: Option<String>,
    /// The parameters.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Retries and pauses.
    #[serde(default)]
    pub empirical_policy: FlowRunPolicy,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Labels.
    #[serde(default)]
    pub labels: Map<String, Value>,
    /// The task run of the parent flow that stands for this subflow.
    #[serde(default)]
    pub parent_task_run_id: Option<TaskRunId>,
    /// Kind of the current state; set in polls too, where `state` is not.
    #[serde(default)]
    pub state_type: Option<StateType>,
    /// Name of the current state.
    #[serde(default)]
    pub state_name: Option<String>,
    /// How often the run has entered `RUNNING`.
    #[serde(default)]
    pub run_count: u32,
    /// When the run is or was due.
    #[serde(default)]
    pub expected_start_time: Option<Timestamp>,
    /// When the run is due next.
    #[serde(default)]
    pub next_scheduled_start_time: Option<Timestamp>,
    /// When the run first entered `RUNNING`.
    #[serde(default)]
    pub start_time: Option<Timestamp>,
    /// When the run ended.
    #[serde(default)]
    pub end_time: Option<Timestamp>,
    /// Seconds spent in `RUNNING`.
    #[serde(default)]
    pub total_run_time: f64,
    /// What the run runs in: `<docker base url>:<container id>` for Docker.
    #[serde(default)]
    pub infrastructure_pid: Option<String>,
    /// The current state; null in polls.
    #[serde(default)]
    pub state: Option<State>,
    /// Job variables of this run, over the deployment's.
    #[serde(default)]
    pub job_variables: Option<Map<String, Value>>,
    /// What else the server tells of it: names of containers may refer to all of it.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A run that a work pool has due (the answer to a poll).
#[derive(Debug, Clone, Deserialize)]
pub struct ScheduledRun {
    /// The pool.
    pub work_pool_id: WorkPoolId,
    /// The queue.
    pub work_queue_id: WorkQueueId,
    /// The run, without its state.
    pub flow_run: FlowRun,
}

/// Body of a poll for due runs.
#[derive(Debug, Clone, Serialize)]
pub struct PollScheduled {
    /// Names of the queues; empty means all.
    pub work_queue_names: Vec<String>,
    /// Due before this moment.
    pub scheduled_before: Timestamp,
    /// At most so many (server's maximum: 200).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Body that creates a run without a deployment.
#[derive(Debug, Clone, Serialize)]
pub struct NewFlowRun {
    /// The first state.
    pub state: NewState,
    /// The run's name; the server invents one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The flow.
    pub flow_id: FlowId,
    /// The version of the flow's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_version: Option<String>,
    /// The parameters.
    pub parameters: Map<String, Value>,
    /// The parent's task run, for a subflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_task_run_id: Option<TaskRunId>,
    /// Retries.
    pub empirical_policy: FlowRunPolicy,
    /// Tags.
    pub tags: Vec<String>,
    /// Of two runs of a flow with the same key the second is not made: the answer is the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// None: it has no infrastructure of its own.
    pub job_variables: Map<String, Value>,
}

/// Body that creates a run from a deployment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewDeploymentRun {
    /// The first state; scheduled for now if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<NewState>,
    /// The run's name; the server invents one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Parameters over the deployment's.
    pub parameters: Map<String, Value>,
    /// Tags beside the deployment's.
    pub tags: Vec<String>,
    /// A second creation under the same key gives the first run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The parent's task run, when a flow starts the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_task_run_id: Option<TaskRunId>,
    /// Job variables over the deployment's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_variables: Option<Map<String, Value>>,
}

/// Body that changes a run; absent fields stay.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FlowRunUpdate {
    /// The run's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The version of the flow's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_version: Option<String>,
    /// What the run runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure_pid: Option<String>,
    /// Retries and pauses; replaces the whole policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empirical_policy: Option<FlowRunPolicy>,
}

/// Where the value of a task's parameter came from; these become the edges of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "input_type", rename_all = "snake_case")]
pub enum TaskInput {
    /// The result of another task run.
    TaskRun {
        /// That task run.
        id: TaskRunId,
    },
    /// The result of a subflow run.
    FlowRun {
        /// That flow run.
        id: FlowRunId,
    },
    /// A parameter of the flow run.
    Parameter {
        /// Its name.
        name: String,
    },
    /// A constant.
    Constant {
        /// Its type's name.
        #[serde(rename = "type")]
        type_name: String,
    },
}

/// Inputs of a task by parameter name; `wait_for` holds explicit dependencies, `__parents__` the task around
/// a nested one.
pub type TaskInputs = BTreeMap<String, Vec<TaskInput>>;

/// How a client retries a task run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRunPolicy {
    /// Prefect 2's number of retries.
    pub max_retries: u32,
    /// Prefect 2's delay, in seconds.
    pub retry_delay_seconds: f64,
    /// How often a failed run is tried again.
    pub retries: u32,
    /// The time before each retry.
    pub retry_delay: RetryDelay,
}

/// Times before retries, in seconds: one for all, or one for each, of which the last is used for all further ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RetryDelay {
    /// Whole seconds for all.
    Whole(u64),
    /// The same for all.
    All(f64),
    /// One for each.
    Each(Vec<f64>),
}

impl Default for RetryDelay {
    fn default() -> Self {
        Self::Whole(0)
    }
}

impl FromIterator<Duration> for RetryDelay {
    fn from_iter<I: IntoIterator<Item = Duration>>(delays: I) -> Self {
        let delays: Vec<Duration> = delays.into_iter().collect();
        match delays.as_slice() {
            [] => Self::default(),
            [delay] if delay.subsec_nanos() == 0 => Self::Whole(delay.as_secs()),
            [delay] => Self::All(delay.as_secs_f64()),
            each => Self::Each(each.iter().map(Duration::as_secs_f64).collect()),
        }
    }
}

/// Body that creates a task run over REST: only for the parents of subflows and called deployments.
#[derive(Debug, Clone, Serialize)]
pub struct NewTaskRun {
    /// The first state.
    pub state: NewState,
    /// The task run's name.
    pub name: String,
    /// The flow run around it.
    pub flow_run_id: FlowRunId,
    /// The task; stable over runs.
    pub task_key: String,
    /// This call of the task; (flow run, `task_key`, `dynamic_key`) is unique.
    pub dynamic_key: String,
    /// The version of the code that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_version: Option<String>,
    /// Retries: none.
    pub empirical_policy: TaskRunPolicy,
    /// Tags.
    pub tags: Vec<String>,
    /// Inputs.
    pub task_inputs: TaskInputs,
}

/// A task run as the server reports it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TaskRun {
    /// The task run's id.
    pub id: TaskRunId,
    /// The task run's name.
    pub name: String,
    /// The flow run around it.
    #[serde(default)]
    pub flow_run_id: Option<FlowRunId>,
    /// The task.
    pub task_key: String,
    /// This call of the task.
    pub dynamic_key: String,
    /// The current state.
    #[serde(default)]
    pub state: Option<State>,
    /// Kind of the current state.
    #[serde(default)]
    pub state_type: Option<StateType>,
    /// Name of the current state.
    #[serde(default)]
    pub state_name: Option<String>,
    /// How often it has entered `RUNNING`.
    #[serde(default)]
    pub run_count: u32,
    /// Inputs.
    #[serde(default)]
    pub task_inputs: Value,
    /// When it first ran.
    #[serde(default)]
    pub start_time: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub end_time: Option<Timestamp>,
}
