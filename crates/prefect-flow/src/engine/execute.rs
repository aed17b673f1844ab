//! From an id or a name to a flow run that is driven to its end.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::deployment::Deployment;
use prefect_api::event::{Event, Resource};
use prefect_api::flow_run::{FlowRun, FlowRunPolicy, FlowRunUpdate, NewFlowRun};
use prefect_api::id::FlowRunId;
use prefect_api::state::{Answer, NewState, StateType};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::session::{failed, force_cancelled, related};
use super::{ABORTED, End, Engine, Origin, Patience, Session, hooks};
use crate::error::chain;
use crate::flow::{AnyFlow, Info};
use crate::parameters::{self, ParameterError, Parameters};
use crate::program::Program;
use crate::report::{self, Level};

/// How long a server is waited for that has not told yet what is to run.
const START: Duration = Duration::from_mins(2);

/// A flow run that could not be carried to an end that the server knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// There is no such run, or it cannot be read.
    #[error("read flow run {id}")]
    Read {
        /// The run.
        id: FlowRunId,
        /// Why.
        source: prefect_client::Error,
    },
    /// The program does not hold the flow of the run. A run to be executed has been reported as crashed.
    #[error("find the flow of flow run {id}: flow '{flow}' is not in this program; it has {known}")]
    UnknownFlow {
        /// The run.
        id: FlowRunId,
        /// The flow.
        flow: String,
        /// The flows that there are.
        known: String,
    },
    /// The run is not in the state that hooks are asked for.
    #[error("run the {hooks} hooks of flow run {id}: its state is {state}")]
    OtherState {
        /// The run.
        id: FlowRunId,
        /// Which hooks.
        hooks: &'static str,
        /// The state's name.
        state: String,
    },
    /// The parameters of a run by hand are not what the flow takes.
    #[error("run flow '{flow}'")]
    Parameters {
        /// The flow.
        flow: String,
        /// What is wrong.
        source: ParameterError,
    },
    /// The server could not be told.
    #[error("report flow run {id}")]
    Report {
        /// The run.
        id: FlowRunId,
        /// Why.
        source: prefect_client::Error,
    },
    /// The server does not take a new run.
    #[error("create a run of flow '{flow}'")]
    Create {
        /// The flow.
        flow: String,
        /// Why.
        source: prefect_client::Error,
    },
}

/// Executes a flow run that exists on the server.
pub(crate) async fn execute(engine: &Arc<Engine>, program: &Program, id: FlowRunId) -> Result<End, Error> {
    let report = |source| Error::Report { id, source };
    let prepared = tokio::select! {
        biased;
        prepared = prepare(engine, program, id) => prepared?,
        () = engine.terminated.cancelled() => {
            if engine.options.reschedule && reschedule(engine, id).await.map_err(report)? {
                return Ok(End::Left("The flow run was rescheduled.".to_owned()));
            }
            hooks::crash(engine, program, id, None).await.map_err(report)?;
            return Ok(End::Crashed(ABORTED.to_owned()));
        }
    };
    match prepared {
        Ok(session) => session.drive().await.map_err(report),
        Err(end) => Ok(end),
    }
}

/// All that comes before the first state; `Err` if the run ends there.
async fn prepare(
    engine: &Arc<Engine>,
    program: &Program,
    id: FlowRunId,
) -> Result<Result<Session, End>, Error> {
    let client = engine.client();
    // A server that is just away is waited for, but not for long: perhaps the address is wrong.
    let patience = Patience::new(START.min(engine.options.report_deadline), engine.hurried.clone());
    let run = patience.insist("read the flow run", || client.read_flow_run(id)).await;
    let mut run = run.map_err(|source| Error::Read { id, source })?;
    let report = |source| Error::Report { id, source };
    match run.state_type {
        Some(StateType::Cancelling) => {
            let message = "Flow run was cancelled before execution started.";
            force_cancelled(engine, id, &run.name, &related(&run, "", None), message)
                .await
                .map_err(report)?;
            return Ok(Err(End::Cancelled));
        }
        Some(StateType::Cancelled) => {
            let line = "The flow run is cancelled already; there is nothing to do.";
            log(engine, &run, Level::Info, line.to_owned());
            return Ok(Err(End::Left(line.to_owned())));
        }
        _ => {}
    }
    let read_flow = engine.patience().insist("read the flow", || client.read_flow(run.flow_id));
    let (flow_name, deployment) = tokio::join!(read_flow, read_deployment(engine, &run));
    let flow_name = flow_name.map_err(report)?.name;
    let Some(flow) = program.find(&flow_name) else {
        let known = program.names();
        let message = format!("flow '{flow_name}' is not in this program; it has {known}");
        log(engine, &run, Level::Error, message.clone());
        propose(engine, id, NewState::new(StateType::Crashed).with_message(message)).await.map_err(report)?;
        return Err(Error::UnknownFlow { id, flow: flow_name, known });
    };
    if let Some(steps) = deployment.as_ref().and_then(|deployment| deployment.pull_steps.as_ref()) {
        pull(engine, &run, steps).await;
    }
    let parameters = match flow.complete(&run.parameters) {
        Ok(parameters) => parameters,
        Err(error) => {
            let message = format!("Validation of flow parameters failed with error: {}", chain(&error));
            log(engine, &run, Level::Error, message.clone());
            propose(engine, id, failed(message)).await.map_err(report)?;
            return Ok(Err(End::Failed(error.into())));
        }
    };
    let update = first_update(engine, flow.as_ref(), &run, &parameters);
    if let Some(update) = update {
        let call = || client.update_flow_run(id, &update);
        engine.patience().insist("tell the flow's version and retries", call).await.map_err(report)?;
        run.name = update.name.unwrap_or(run.name);
    }
    let related = related(&run, &flow_name, deployment.as_ref().map(|it| it.name.as_str()));
    Ok(Ok(Session::new(Arc::clone(engine), Arc::clone(flow), &run, parameters, related, Origin::Main)))
}

/// What the server does not know yet about the run: its name, the version of the code, how often it may be
/// retried. `None` if it knows all.
fn first_update(
    engine: &Engine,
    flow: &dyn AnyFlow,
    run: &FlowRun,
    parameters: &Parameters,
) -> Option<FlowRunUpdate> {
    let info = flow.info();
    let name = info.run_name.as_ref().map(|template| parameters::render(template, parameters));
    let name = name.filter(|name| *name != run.name);
    let version = engine.version_of(flow);
    let version = (run.flow_version.as_ref() != Some(&version)).then_some(version);
    let policy = &run.empirical_policy;
    let incomplete = policy.retries.is_none() || policy.retry_delay.is_none();
    // The whole policy is replaced: what is not ours goes back as it was read.
    let policy = incomplete.then(|| {
        let ours = policy_of(info);
        let mut policy = policy.clone();
        policy.retries = policy.retries.or(ours.retries);
        policy.retry_delay = policy.retry_delay.or(ours.retry_delay);
        policy
    });
    let changed = name.is_some() || version.is_some() || policy.is_some();
    changed.then(|| FlowRunUpdate {
        name,
        flow_version: version,
        empirical_policy: policy,
        ..FlowRunUpdate::default()
    })
}

/// The retries of a flow, for a run that has none yet.
pub(crate) fn policy_of(info: &Info) -> FlowRunPolicy {
    FlowRunPolicy {
        retries: Some(info.retries),
        retry_delay: Some(info.retry_delay.as_secs()),
        pause_keys: Some(Vec::new()),
        resuming: Some(false),
        ..FlowRunPolicy::default()
    }
}

/// Makes a run of a flow of this program and executes it.
pub(crate) async fn run_by_hand(
    engine: &Arc<Engine>,
    flow: &Arc<dyn AnyFlow>,
    given: &Parameters,
) -> Result<End, Error> {
    let info = flow.info();
    let parameters =
        flow.complete(given).map_err(|source| Error::Parameters { flow: info.name.clone(), source })?;
    let create = async {
        let record = engine.client().create_flow(&info.name).await?;
        let new = NewFlowRun {
            state: NewState::first(StateType::Pending),
            name: info.run_name.as_ref().map(|template| parameters::render(template, &parameters)),
            flow_id: record.id,
            flow_version: Some(engine.version_of(flow.as_ref())),
            parameters: parameters.clone(),
            parent_task_run_id: None,
            empirical_policy: policy_of(info),
            tags: Vec::new(),
            // An answer may be lost: made again, it would be another run.
            idempotency_key: Some(Uuid::new_v4().to_string()),
            job_variables: Map::new(),
        };
        engine.client().create_flow_run(&new).await
    };
    let run = create.await.map_err(|source| Error::Create { flow: info.name.clone(), source })?;
    let id = run.id;
    let related = related(&run, &info.name, None);
    let session = Session::new(Arc::clone(engine), Arc::clone(flow), &run, parameters, related, Origin::Main);
    session.drive().await.map_err(|source| Error::Report { id, source })
}

/// The deployment of a run. It only adds to what is told: a run whose deployment is gone can still be
/// executed.
pub(super) async fn read_deployment(engine: &Engine, run: &FlowRun) -> Option<Deployment> {
    match engine.client().read_deployment(run.deployment_id?).await {
        Ok(deployment) => Some(deployment),
        Err(error) => {
            tracing::warn!(error = chain(&error), "the deployment of the run cannot be read");
            None
        }
    }
}

/// Pull steps fetch a Python flow's sources and go to their directory. The flows of a program are in it, so
/// that steps which fetch have nothing to do; a directory is gone to if it is there, because a flow may refer
/// to files in it.
pub(super) async fn pull(engine: &Engine, run: &FlowRun, steps: &[Value]) {
    for (index, step) in steps.iter().enumerate() {
        let Some((name, inputs)) = step.as_object().and_then(|step| step.iter().next()) else { continue };
        let short = name.rsplit('.').next().unwrap_or(name);
        let directory = inputs["directory"].as_str();
        let obeyed = short == "set_working_directory"
            && directory.is_some_and(|directory| std::env::set_current_dir(directory).is_ok());
        if !obeyed {
            let line = format!("Deployment step '{short}' skipped: the flow is part of this program");
            log(engine, run, Level::Info, line);
            continue;
        }
        let mut event = Event::new(
            "prefect.flow-run.pull-step.executed",
            Timestamp::now(),
            Resource::of("flow-run", run.id),
        );
        event.related.extend(run.deployment_id.map(|id| Resource::of("deployment", id).role("deployment")));
        event.payload.insert("index".to_owned(), index.into());
        event.payload.insert("qualified_name".to_owned(), name.as_str().into());
        event.payload.insert("step_name".to_owned(), short.into());
        event.payload.insert("id".to_owned(), Value::Null);
        event.payload.insert("inputs".to_owned(), inputs.clone());
        engine.events().send(event).await;
    }
}

/// Hands a run that was never started back to its work pool. `false` if the server does not take it.
async fn reschedule(engine: &Engine, id: FlowRunId) -> Result<bool, prefect_client::Error> {
    let state = NewState::new(StateType::Scheduled).named("AwaitingRetry").scheduled_at(Timestamp::now());
    let call = || engine.client().set_flow_run_state(id, &state, false);
    let answer = engine.patience().insist("reschedule the flow run", call).await?;
    Ok(matches!(answer, Answer::Accept(_)))
}

/// Proposes a final state of a run that was never started.
pub(crate) async fn propose(
    engine: &Engine,
    id: FlowRunId,
    state: NewState,
) -> Result<(), prefect_client::Error> {
    let call = || engine.client().set_flow_run_state(id, &state, false);
    match engine.patience().insist("report the end of the flow run", call).await? {
        Answer::Reject { state: Some(now), .. } if now.kind == StateType::Cancelling => {
            let (name, run) = (id.to_string(), Resource::of("flow-run", id).role("flow-run"));
            let message = "Flow run was cancelled before execution started.";
            force_cancelled(engine, id, &name, &[run], message).await
        }
        answer => {
            tracing::debug!(?answer, "the server's answer to the end of the run");
            Ok(())
        }
    }
}

pub(super) fn log(engine: &Engine, run: &FlowRun, level: Level, line: String) {
    let origin = report::Origin { flow_run: run.id, task_run: None, name: &run.name };
    engine.logs().write(level, origin, line);
}
