//! When the hooks of a flow run are run, and for how long: by the process that executes it, or afterwards, when that
//! process died.

use std::sync::Arc;

use prefect_api::id::FlowRunId;
use prefect_api::state::{NewState, StateType};
use prefect_client::Error as ApiError;

use super::execute::{Error, log, propose, pull, read_deployment};
use super::session::{Origin, Session, related};
use super::{ABORTED, Engine};
use crate::context::{Context, Run};
use crate::error::chain;
use crate::flow::AnyFlow;
use crate::hook::{Entered, Occasion, run_all};
use crate::parameters::Parameters;
use crate::program::Program;
use crate::report::Level;

/// What Prefect says of a run that is being cancelled.
const CANCELLED: &str = "Flow run was cancelled.";

/// What can have ended a run's process, so that its hooks are left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Death {
    /// The run is Crashed.
    Crashed,
    /// The run is Cancelled, or about to be.
    Cancelled,
}

impl Death {
    const fn occasion(self) -> Occasion {
        match self {
            Self::Crashed => Occasion::Crash,
            Self::Cancelled => Occasion::Cancellation,
        }
    }

    /// As Prefect calls the hooks.
    pub(crate) const fn hooks(self) -> &'static str {
        match self {
            Self::Crashed => "on_crashed",
            Self::Cancelled => "on_cancellation",
        }
    }

    const fn fits(self, kind: StateType) -> bool {
        match self {
            Self::Crashed => matches!(kind, StateType::Crashed),
            Self::Cancelled => matches!(kind, StateType::Cancelling | StateType::Cancelled),
        }
    }
}

/// The state that hooks for a cancellation are told: the run's code has ended, its last state is still to come.
pub(super) fn cancelling(message: Option<&str>) -> Entered {
    let kind = StateType::Cancelling;
    let message = message.filter(|message| !message.is_empty()).unwrap_or(CANCELLED).to_owned();
    Entered { kind, name: kind.default_name().to_owned(), message }
}

/// Runs the hooks that a flow has for a state. Gives the number of those that did not run to their end.
pub(super) async fn call(
    flow: &dyn AnyFlow,
    parameters: &Parameters,
    entered: &Entered,
    run: impl FnOnce() -> Arc<Run>,
) -> usize {
    let Some(on) = Occasion::of(entered.kind).filter(|on| flow.has_hooks(*on)) else { return 0 };
    let ctx = Context::of_flow(run());
    let due = match flow.hooks(on, &ctx, parameters, entered) {
        Ok(due) => due,
        Err(error) => {
            let state = &entered.name;
            ctx.error(format!("The hooks for state '{state}' cannot be run: {}", chain(&error)));
            return 1;
        }
    };
    let failed = run_all(&ctx, due, entered, time_is_up(&ctx.run.engine, on)).await;
    // What a hook has started and not waited for ends with the hooks.
    ctx.run.cancellation.cancel();
    ctx.run.abort.cancel();
    failed
}

/// Waits until hooks have had their time. A completed or failed run may clean up as long as it likes; one that must
/// end has limits, since somebody waits to kill it.
async fn time_is_up(engine: &Engine, on: Occasion) {
    let limit = async {
        match on {
            Occasion::Cancellation | Occasion::Crash => tokio::time::sleep(engine.options.hook_limit).await,
            Occasion::Running | Occasion::Completion | Occasion::Failure => std::future::pending().await,
        }
    };
    let terminated = async {
        engine.terminated.cancelled().await;
        tokio::time::sleep(engine.options.terminate_grace).await;
    };
    tokio::select! {
        () = limit => {}
        () = terminated => {}
        () = engine.hurried.cancelled() => {}
    }
}

/// Runs the hooks of a run whose process died. Nothing is proposed. Gives the number of hooks that did not run to
/// their end.
pub(crate) async fn after_death(
    engine: &Arc<Engine>,
    program: &Program,
    id: FlowRunId,
    death: Death,
) -> Result<usize, Error> {
    let client = engine.client();
    let run = client.read_flow_run(id).await.map_err(|source| Error::Read { id, source })?;
    let kind = run.state_type.unwrap_or(StateType::Unknown);
    if !death.fits(kind) {
        let state = run.state_name.unwrap_or_else(|| kind.as_str().to_owned());
        return Err(Error::OtherState { id, hooks: death.hooks(), state });
    }
    let read_flow = client.read_flow(run.flow_id);
    let (flow_name, deployment) = tokio::join!(read_flow, read_deployment(engine, &run));
    let flow_name = flow_name.map_err(|source| Error::Read { id, source })?.name;
    let Some(flow) = program.find(&flow_name) else {
        let (hooks, known) = (death.hooks(), program.names());
        let line = format!(
            "Runner failed to retrieve flow to execute {hooks} hooks for flow run '{id}': flow '{flow_name}' is \
             not in this program; it has {known}"
        );
        log(engine, &run, Level::Warning, line);
        return Err(Error::UnknownFlow { id, flow: flow_name, known });
    };
    if !flow.has_hooks(death.occasion()) {
        tracing::info!(run = run.name, "flow '{flow_name}' has no {} hooks", death.hooks());
        return Ok(0);
    }
    if let Some(steps) = deployment.as_ref().and_then(|deployment| deployment.pull_steps.as_ref()) {
        pull(engine, &run, steps).await;
    }
    let entered = match (death, &run.state) {
        (Death::Crashed, Some(state)) => Entered::from(state),
        (Death::Crashed, None) => Entered {
            kind: StateType::Crashed,
            name: StateType::Crashed.default_name().to_owned(),
            message: String::new(),
        },
        (Death::Cancelled, state) => cancelling(state.as_ref().and_then(|state| state.message.as_deref())),
    };
    let related = related(&run, &flow_name, deployment.as_ref().map(|it| it.name.as_str()));
    let parameters = run.parameters.clone();
    let session = Session::new(Arc::clone(engine), Arc::clone(flow), &run, parameters, related, Origin::Main);
    Ok(session.call_hooks(&entered).await)
}

/// Reports that a run crashed before its flow began, and runs the hooks for it.
pub(crate) async fn crash(
    engine: &Arc<Engine>,
    program: &Program,
    id: FlowRunId,
    message: Option<String>,
) -> Result<(), ApiError> {
    let message = message.unwrap_or_else(|| ABORTED.to_owned());
    propose(engine, id, NewState::new(StateType::Crashed).with_message(message)).await?;
    if let Err(error) = after_death(engine, program, id, Death::Crashed).await {
        tracing::debug!(error = chain(&error), "no hooks for the crash");
    }
    Ok(())
}
