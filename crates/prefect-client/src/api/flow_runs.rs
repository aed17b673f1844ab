//! Flows, flow runs, task runs, logs, events.

use jiff::Timestamp;
use prefect_api::flow_run::{Flow, FlowRun, FlowRunUpdate, NewFlowRun, NewTaskRun, TaskRun};
use prefect_api::id::{FlowId, FlowRunId};
use prefect_api::record::NewLog;
use prefect_api::state::{Answer, NewState, OrchestrationResult, State};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::http::{Call, Client};

#[derive(Serialize)]
struct Proposal<'a> {
    state: &'a NewState,
    force: bool,
}

impl Client {
    /// The server's version, for example `3.7.2`.
    pub async fn server_version(&self) -> Result<String, Error> {
        self.read(Call::new(Method::GET, "admin/version", &[])).await
    }

    /// Whether the server is up; needs no credentials.
    pub async fn health(&self) -> Result<(), Error> {
        self.call(Call::new(Method::GET, "health", &[])).await
    }

    /// What the server's clock says, to the second; needs no credentials. `None` if the answer has no date.
    pub async fn clock(&self) -> Result<Option<Timestamp>, Error> {
        self.date(Call::new(Method::GET, "health", &[])).await
    }

    /// Makes the flow of this name, or finds it.
    pub async fn create_flow(&self, name: &str) -> Result<Flow, Error> {
        self.read(
            Call::new(Method::POST, "flows/", &[]).json(&json!({"name": name, "tags": [], "labels": {}})),
        )
        .await
    }

    /// A flow.
    pub async fn read_flow(&self, id: FlowId) -> Result<Flow, Error> {
        self.read(Call::new(Method::GET, "flows/{}", &[&id.to_string()])).await
    }

    /// A flow run.
    pub async fn read_flow_run(&self, id: FlowRunId) -> Result<FlowRun, Error> {
        self.read(Call::new(Method::GET, "flow_runs/{}", &[&id.to_string()])).await
    }

    /// Makes a flow run without a deployment.
    pub async fn create_flow_run(&self, run: &NewFlowRun) -> Result<FlowRun, Error> {
        self.read(Call::new(Method::POST, "flow_runs/", &[]).json(run)).await
    }

    /// Changes a flow run.
    pub async fn update_flow_run(&self, id: FlowRunId, update: &FlowRunUpdate) -> Result<(), Error> {
        self.call(Call::new(Method::PATCH, "flow_runs/{}", &[&id.to_string()]).json(update)).await
    }

    /// Merges labels into those of a flow run.
    pub async fn set_flow_run_labels(&self, id: FlowRunId, labels: &Map<String, Value>) -> Result<(), Error> {
        self.call(Call::new(Method::PATCH, "flow_runs/{}/labels", &[&id.to_string()]).json(labels)).await
    }

    /// Proposes a state. A re-sent proposal keeps its transition id, hence is recognised by the server;
    /// `force` skips the server's rules and belongs to the finalisation of a cancellation only.
    pub async fn set_flow_run_state(
        &self,
        id: FlowRunId,
        state: &NewState,
        force: bool,
    ) -> Result<Answer, Error> {
        let id = id.to_string();
        let call = Call::new(Method::POST, "flow_runs/{}/set_state", &[&id]).json(&Proposal { state, force });
        let result: OrchestrationResult = self.read(call).await?;
        Answer::try_from(result).map_err(|error| Error::Decode {
            method: Method::POST,
            path: format!("/flow_runs/{id}/set_state"),
            source: serde::de::Error::custom(error),
        })
    }

    /// The states that a flow run went through, in no particular order.
    pub async fn read_flow_run_states(&self, id: FlowRunId) -> Result<Vec<State>, Error> {
        self.read(Call::new(Method::GET, "flow_run_states/", &[]).query("flow_run_id", &id.to_string())).await
    }

    /// Flow runs that match a filter of the API: `{"flow_runs": {…}, "sort": …, "limit": …}`.
    pub async fn filter_flow_runs(&self, filter: &Value) -> Result<Vec<FlowRun>, Error> {
        self.read(Call::new(Method::POST, "flow_runs/filter", &[]).json(filter)).await
    }

    /// Keeps a value with a run, for a pause that waits for input.
    pub async fn create_flow_run_input(&self, id: FlowRunId, key: &str, value: &Value) -> Result<(), Error> {
        let body = json!({"key": key, "value": value.to_string(), "sender": null});
        self.call(Call::new(Method::POST, "flow_runs/{}/input", &[&id.to_string()]).json(&body)).await
    }

    /// A value that is kept with a run.
    pub async fn read_flow_run_input(&self, id: FlowRunId, key: &str) -> Result<Option<Value>, Error> {
        self.read_optional(Call::new(Method::GET, "flow_runs/{}/input/{}", &[&id.to_string(), key])).await
    }

    /// The graph of a flow run, as its page in the UI shows it.
    pub async fn read_graph(&self, id: FlowRunId) -> Result<Value, Error> {
        self.read(Call::new(Method::GET, "flow_runs/{}/graph-v2", &[&id.to_string()])).await
    }

    /// Makes a task run over REST, or finds the one with its keys: parents of subflows only.
    pub async fn create_task_run(&self, run: &NewTaskRun) -> Result<TaskRun, Error> {
        self.read(Call::new(Method::POST, "task_runs/", &[]).json(run)).await
    }

    /// Task runs that match a filter of the API.
    pub async fn filter_task_runs(&self, filter: &Value) -> Result<Vec<TaskRun>, Error> {
        self.read(Call::new(Method::POST, "task_runs/filter", &[]).json(filter)).await
    }

    /// Stores lines of logs.
    pub async fn send_logs(&self, logs: &[NewLog]) -> Result<(), Error> {
        self.call(Call::new(Method::POST, "logs/", &[]).json(logs)).await
    }

    /// Lines of logs that match a filter of the API.
    pub async fn filter_logs(&self, filter: &Value) -> Result<Vec<Value>, Error> {
        self.read(Call::new(Method::POST, "logs/filter", &[]).json(filter)).await
    }

    /// Sends events, each as JSON, over REST: the equal of the socket where WebSockets are blocked.
    pub(crate) async fn post_events<T: AsRef<str>>(&self, events: &[T]) -> Result<(), Error> {
        let events: Vec<&str> = events.iter().map(AsRef::as_ref).collect();
        self.call(Call::new(Method::POST, "events", &[]).text(format!("[{}]", events.join(",")))).await
    }
}
