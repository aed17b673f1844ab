//! Flows, flow runs, task runs, logs, events.

use std::collections::HashSet;

use jiff::Timestamp;
use prefect_api::flow_run::{Flow, FlowRun, FlowRunUpdate, NewFlowRun, NewTaskRun, TaskRun};
use prefect_api::id::{EventId, FlowId, FlowRunId};
use prefect_api::record::NewLog;
use prefect_api::state::{Answer, NewState, OrchestrationResult, State, StateType};
use reqwest::Method;
use serde::{Deserialize, Serialize};
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
    ///
    /// A failure is not repeated when it may have taken effect: a server that answered with a retry has put the run
    /// into a state without the transition id, and would take the same failure again, for the last one.
    pub async fn set_flow_run_state(
        &self,
        id: FlowRunId,
        state: &NewState,
        force: bool,
    ) -> Result<Answer, Error> {
        let id = id.to_string();
        let call = Call::new(Method::POST, "flow_runs/{}/set_state", &[&id]).json(&Proposal { state, force });
        let call = if state.kind == StateType::Failed { call.once() } else { call };
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

    /// Stores lines of logs: all of them or, if it fails, none. Not repeated when it may have taken effect:
    /// [`Self::send_logs_again`] is for that.
    pub async fn send_logs(&self, logs: &[NewLog]) -> Result<(), Error> {
        self.call(Call::new(Method::POST, "logs/", &[]).json(logs).once()).await
    }

    /// Stores lines of logs after an attempt that failed, unless they are there all the same. The same lines in the same
    /// order: the first stands for all.
    pub async fn send_logs_again(&self, logs: &[NewLog]) -> Result<(), Error> {
        let Some(first) = logs.first() else { return Ok(()) };
        match self.has_log(first).await {
            Ok(true) => Ok(()),
            Err(error) if error.is_transient() => Err(error),
            // Nothing is there, or nobody may look: lines too many are better than none.
            Ok(false) | Err(_) => self.send_logs(logs).await,
        }
    }

    async fn has_log(&self, line: &NewLog) -> Result<bool, Error> {
        // The server keeps no more than microseconds.
        let unit = jiff::TimestampRound::new().smallest(jiff::Unit::Microsecond).mode(jiff::RoundMode::Trunc);
        let at = line.timestamp.round(unit).unwrap_or(line.timestamp);
        let filter = json!({
            "logs": {"flow_run_id": {"any_": [line.flow_run_id]}, "timestamp": {"after_": at, "before_": at}},
        });
        let found = self.filter_logs(&filter).await?;
        Ok(found.iter().any(|found| found["message"] == line.message && found["name"] == line.name))
    }

    /// Lines of logs that match a filter of the API.
    pub async fn filter_logs(&self, filter: &Value) -> Result<Vec<Value>, Error> {
        self.read(Call::new(Method::POST, "logs/filter", &[]).json(filter)).await
    }

    /// Sends events, each as JSON, over REST: the equal of the socket where WebSockets are blocked. Not repeated when it
    /// may have taken effect.
    pub(crate) async fn post_events<T: AsRef<str>>(&self, events: &[T]) -> Result<(), Error> {
        let events: Vec<&str> = events.iter().map(AsRef::as_ref).collect();
        let call = Call::new(Method::POST, "events", &[]).text(format!("[{}]", events.join(",")));
        self.call(call.once()).await
    }

    /// The ids of stored events that match a filter of the API, at most `limit`.
    pub(crate) async fn filter_event_ids(
        &self,
        filter: &Value,
        limit: usize,
    ) -> Result<HashSet<EventId>, Error> {
        #[derive(Deserialize)]
        struct Page {
            events: Vec<Stored>,
        }
        #[derive(Deserialize)]
        struct Stored {
            id: EventId,
        }
        let call = Call::new(Method::POST, "events/filter", &[]);
        let page: Page = self.read(call.json(&json!({"filter": filter, "limit": limit}))).await?;
        Ok(page.events.into_iter().map(|event| event.id).collect())
    }
}
