//! Subflows: a flow run of its own inside another, with a task run in the parent that stands for it
//! (contract §3.3). The server mirrors the subflow's states into that task run; no events are sent for it.

use std::any::Any;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;

use prefect_api::flow_run::{FlowRun, NewFlowRun, NewTaskRun, TaskInput, TaskInputs, TaskRun, TaskRunPolicy};
use prefect_api::state::{NewState, StateType};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::context::Context;
use crate::engine::{ABORTED, End, Origin, Session, policy_of, related};
use crate::error::SubflowError;
use crate::flow::{AnyFlow, Flow};
use crate::parameters::{self, ParameterError, Parameters};
use crate::task::{Done, Handle, Outcome, Upstream};

/// A subflow that has not been started; made by [`Context::subflow`], started by awaiting it. When the future is
/// dropped, the run is cancelled.
#[must_use = "a subflow does nothing until it is awaited"]
#[derive(Debug)]
pub struct Subflow<P, T> {
    flow: Flow<P, T>,
    parameters: P,
    call: Call,
}

/// What a call of a subflow is beside its flow and parameters.
#[derive(Debug)]
struct Call {
    ctx: Context,
    upstreams: Vec<(String, Handle)>,
    tags: Vec<String>,
}

impl<P, T> Subflow<P, T>
where
    P: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
    T: Send + 'static,
{
    pub(crate) const fn new(ctx: Context, flow: Flow<P, T>, parameters: P) -> Self {
        Self { flow, parameters, call: Call { ctx, upstreams: Vec::new(), tags: Vec::new() } }
    }

    /// Its parameter `name` comes from a task: an edge in the graph. It starts when that one has ended, and
    /// never if that one did not complete.
    pub fn input(mut self, name: impl Into<String>, upstream: &impl Upstream) -> Self {
        self.call.upstreams.push((name.into(), upstream.handle().clone()));
        self
    }

    /// It starts when another has ended, and never if that one did not complete.
    pub fn wait_for(self, upstream: &impl Upstream) -> Self {
        self.input("wait_for", upstream)
    }

    /// One more tag of the subflow's run.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.call.tags.push(tag.into());
        self
    }

    async fn run(self) -> Result<Done<T>, SubflowError> {
        let Self { flow, parameters, call } = self;
        let flow_name = flow.info().name.clone();
        let complete = to_map(&parameters)
            .and_then(|given| flow.complete(&given))
            .map_err(|source| SubflowError::Parameters { flow: flow_name.clone(), source })?;
        // Not kept over an await: parameters need not be `Sync`.
        drop(parameters);
        for (_, upstream) in &call.upstreams {
            if !call.ctx.unless_cancelled(upstream.completed()).await.unwrap_or(false) {
                return Err(SubflowError::NotReady { flow: flow_name, upstream: upstream.id() });
            }
        }
        let flow: Arc<dyn AnyFlow> = Arc::new(flow);
        let found = call
            .find_or_create(flow.as_ref(), &complete)
            .await
            .map_err(|source| SubflowError::Report { flow: flow_name.clone(), source })?;
        let (ended, handle) = Handle::new(found.parent.id);
        if let Some(value) = found.result {
            ended.send_replace(Outcome::Completed);
            call.ctx.info(format!("Subflow run '{}' has completed before", found.run.name));
            return done(value, handle, &flow_name, &found.run);
        }
        let related = related(&found.run, &flow_name, None);
        let parent = call.ctx.run.cancellation.child_token();
        // The run goes on beside this future. Dropped, it stops the run, whose end is told nevertheless.
        let _stop = parent.clone().drop_guard();
        let origin = Origin::Subflow { parent };
        let engine = &call.ctx.run.engine;
        let session = Session::new(Arc::clone(engine), flow, &found.run, complete, related, origin);
        let driven = match engine.drive(&call.ctx.run.subflows, session).await {
            Ok(driven) => driven,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Ok(End::Crashed(ABORTED.to_owned())),
            },
        };
        let end = driven.map_err(|source| SubflowError::Report { flow: flow_name.clone(), source })?;
        let completed = matches!(end, End::Completed(_));
        ended.send_replace(if completed { Outcome::Completed } else { Outcome::Other });
        let reason = match end {
            End::Completed(value) => return done(value, handle, &flow_name, &found.run),
            End::Failed(source) => {
                let (run, id) = (found.run.name, found.run.id);
                return Err(SubflowError::Failed { flow: flow_name, run, id, source });
            }
            End::Cancelled => "it was cancelled".to_owned(),
            End::Crashed(message) | End::Left(message) => message,
        };
        Err(SubflowError::Ended { flow: flow_name, run: found.run.name, id: found.run.id, reason })
    }
}

impl Call {
    /// The flow run of this call: the one of an earlier attempt of the parent if it is not lost, else a new one.
    async fn find_or_create(
        &self,
        flow: &dyn AnyFlow,
        complete: &Parameters,
    ) -> Result<Found, prefect_client::Error> {
        let run = &self.ctx.run;
        let info = flow.info();
        let (client, patience) = (run.engine.client(), run.engine.patience());
        let new_parent = self.new_parent(&info.name, run.engine.version_of(flow));
        // One after the other: two writes at once make a server on SQLite answer 503, which costs two seconds.
        let create = || client.create_task_run(&new_parent);
        let parent = patience.insist("create a subflow's task run", create).await?;
        let create = || client.create_flow(&info.name);
        let flow_record = patience.insist("create a subflow's flow", create).await?;
        // In the first attempt there is nothing to find.
        let earlier = if run.attempt > 1 { self.earlier_run(&parent).await? } else { None };
        // The n-th call need not be about the same thing as the n-th call of the earlier attempt.
        let earlier = earlier.filter(|earlier| earlier.parameters == *complete);
        if let Some(earlier) = earlier {
            if earlier.state_type == Some(StateType::Completed) {
                if let Some(result) = self.result_of(flow, &earlier).await {
                    return Ok(Found { parent, run: earlier, result: Some(result) });
                }
            } else if !earlier.state_type.is_some_and(StateType::is_final) {
                return Ok(Found { parent, run: earlier, result: None });
            }
        }
        let new = NewFlowRun {
            state: NewState::first(StateType::Pending),
            name: info.run_name.as_ref().map(|template| parameters::render(template, complete)),
            flow_id: flow_record.id,
            flow_version: Some(run.engine.version_of(flow)),
            parameters: complete.clone(),
            parent_task_run_id: Some(parent.id),
            empirical_policy: policy_of(info),
            tags: self.tags.clone(),
            // An answer may be lost: made again, it would be another run.
            idempotency_key: Some(Uuid::new_v4().to_string()),
            job_variables: Map::new(),
        };
        let run = patience.insist("create a subflow's run", || client.create_flow_run(&new)).await?;
        Ok(Found { parent, run, result: None })
    }

    /// The result of a run that has completed, as far as it is known.
    async fn result_of(&self, flow: &dyn AnyFlow, run: &FlowRun) -> Option<Box<dyn Any + Send>> {
        if let Some(known) = flow.known_result() {
            return Some(known);
        }
        let reference = run.state.as_ref().and_then(|state| state.data.as_ref());
        let (text, _) = self.ctx.run.engine.results().read(reference).await.ok()?;
        flow.decode_result(&text)?.ok()
    }

    fn new_parent(&self, flow_name: &str, version: String) -> NewTaskRun {
        let run = &self.ctx.run;
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, flow_name.as_bytes()).simple().to_string();
        let task_key = format!("{flow_name}-{}", digest.get(..8).unwrap_or(&digest));
        // Stable over attempts of the parent, unlike that of a task: it finds the same task run again.
        let number = run.count_call(&task_key);
        let mut inputs = TaskInputs::new();
        if let Some(task) = &self.ctx.task {
            inputs.insert("__parents__".to_owned(), vec![TaskInput::TaskRun { id: task.id }]);
        }
        for (name, upstream) in &self.upstreams {
            inputs.entry(name.clone()).or_default().push(TaskInput::TaskRun { id: upstream.id() });
        }
        NewTaskRun {
            state: NewState::first(StateType::Pending),
            name: format!("{flow_name}-{number}"),
            flow_run_id: run.id,
            task_key,
            dynamic_key: number.to_string(),
            task_version: Some(version),
            empirical_policy: TaskRunPolicy::default(),
            tags: Vec::new(),
            task_inputs: inputs,
        }
    }

    async fn earlier_run(&self, parent: &TaskRun) -> Result<Option<FlowRun>, prefect_client::Error> {
        let engine = &self.ctx.run.engine;
        let filter = json!({
            "flow_runs": {"parent_task_run_id": {"any_": [parent.id]}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 1,
            "offset": 0,
        });
        let find = || engine.client().filter_flow_runs(&filter);
        Ok(engine.patience().insist("find a subflow's run", find).await?.pop())
    }
}

impl<P, T> IntoFuture for Subflow<P, T>
where
    P: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
    T: Send + 'static,
{
    type Output = Result<Done<T>, SubflowError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

struct Found {
    parent: TaskRun,
    run: FlowRun,
    /// If it has completed before.
    result: Option<Box<dyn Any + Send>>,
}

fn to_map<P: Serialize>(parameters: &P) -> Result<Parameters, ParameterError> {
    let invalid = |problem: String| ParameterError::Invalid { path: ".".to_owned(), problem };
    match serde_json::to_value(parameters) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Parameters::new()),
        Ok(_) => Err(invalid("parameters must be a struct with named fields".to_owned())),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn done<T: 'static>(
    value: Box<dyn Any + Send>,
    handle: Handle,
    flow: &str,
    run: &FlowRun,
) -> Result<Done<T>, SubflowError> {
    match value.downcast::<T>() {
        Ok(value) => Ok(Done { value: *value, handle }),
        Err(_) => Err(SubflowError::Ended {
            flow: flow.to_owned(),
            run: run.name.clone(),
            id: run.id,
            reason: "its result has another type".to_owned(),
        }),
    }
}
