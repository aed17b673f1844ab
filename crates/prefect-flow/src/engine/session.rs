//! One flow run from Pending to its end, over all its attempts: proposes states and obeys the answers.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::event::{Event, Resource};
use prefect_api::flow_run::{FlowRun, FlowRunUpdate};
use prefect_api::id::{DeploymentId, FlowRunId, LeaseId};
use prefect_api::state::{Answer, NewState, State, StateType};
use prefect_client::Error;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::supervise::{Interrupt, Interrupts, Outcome, attempt};
use super::watch::Stop;
use super::{ABORTED, Engine, hooks};
use crate::context::Run;
use crate::error::{BoxError, chain};
use crate::flow::AnyFlow;
use crate::hook::Entered;
use crate::parameters::Parameters;
use crate::report::{self, Level};
use crate::task::py_state;

/// How soon a run that the server still wants pending is proposed as running again.
const STILL_PENDING: Duration = Duration::from_millis(200);
/// How long a last look at the run may take when the process has to end.
const LAST_LOOK: Duration = Duration::from_secs(3);

/// How a flow run ended, as far as this process is concerned.
pub(crate) enum End {
    /// Completed, with its result.
    Completed(Box<dyn Any + Send>),
    /// Failed, for good.
    Failed(BoxError),
    /// Cancelled.
    Cancelled,
    /// Crashed.
    Crashed(String),
    /// Left to others: it waits for a slot, is paused, or was finished off by somebody else.
    Left(String),
}

/// Where a flow run comes from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// From a deployment, or made by hand.
    Main,
    /// From a flow; it stops when that one does, or nobody waits for it any more.
    Subflow {
        /// Fires when it is to stop.
        parent: CancellationToken,
    },
}

/// One flow run in this process.
pub(crate) struct Session {
    engine: Arc<Engine>,
    flow: Arc<dyn AnyFlow>,
    id: FlowRunId,
    name: String,
    deployment: Option<DeploymentId>,
    parameters: Parameters,
    related: Vec<Resource>,
    interrupts: Interrupts,
    /// A flow has made it, here or by its deployment.
    is_called: bool,
    run_count: u32,
    resuming: bool,
    /// The server believes that this process retries the run (contract §5.7).
    retries_in_process: bool,
}

/// What the server says to a run that wants to be running.
enum Entry {
    Started { lease: Option<LeaseId>, state: Entered },
    Refused(End),
}

impl Session {
    pub(crate) fn new(
        engine: Arc<Engine>,
        flow: Arc<dyn AnyFlow>,
        run: &FlowRun,
        parameters: Parameters,
        related: Vec<Resource>,
        origin: Origin,
    ) -> Self {
        let parent = match origin {
            Origin::Main => None,
            Origin::Subflow { parent } => Some(parent),
        };
        let interrupts = Interrupts {
            watched: engine.watch.watch(run.id),
            terminated: engine.terminated.clone(),
            parent,
            slot_lost: CancellationToken::new(),
        };
        Self {
            flow,
            id: run.id,
            name: run.name.clone(),
            deployment: run.deployment_id,
            parameters,
            related,
            interrupts,
            is_called: run.parent_task_run_id.is_some(),
            run_count: run.run_count,
            resuming: run.empirical_policy.resuming == Some(true),
            retries_in_process: run.empirical_policy.retry_type.as_deref() == Some("in_process"),
            engine,
        }
    }

    /// Runs the flow to its end. An error means that the server could not be told.
    pub(crate) async fn drive(mut self) -> Result<End, Error> {
        loop {
            let (lease, state) = match self.enter_running().await? {
                Entry::Started { lease, state } => (lease, state),
                Entry::Refused(end) => return Ok(end),
            };
            tokio::select! {
                biased;
                _ = self.call_hooks(&state) => {}
                // Before the first line of the flow's code, hence with nothing to undo.
                interrupt = self.interrupts.next() => return self.end_interrupted(interrupt).await,
            }
            let kind = if self.is_called { "subflow" } else { "flow" };
            let flow = &self.flow.info().name;
            self.log(Level::Info, format!("Beginning {kind} run '{}' for flow '{flow}'", self.name));
            let outcome =
                attempt(&self.flow, &self.parameters, self.new_run(), &self.interrupts, lease).await;
            if let Some(end) = self.conclude(outcome).await? {
                return Ok(end);
            }
        }
    }

    fn new_run(&self) -> Arc<Run> {
        Arc::new(Run {
            engine: Arc::clone(&self.engine),
            id: self.id,
            name: self.name.clone(),
            flow_name: self.flow.info().name.clone(),
            deployment: self.deployment,
            attempt: self.run_count,
            related: self.related.clone(),
            cancellation: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
            subflows: TaskTracker::new(),
            suspended: CancellationToken::new(),
            gave_slot_back: AtomicBool::new(false),
            calls: Mutex::new(HashMap::new()),
        })
    }

    /// Proposes Running until the server takes it or has other plans.
    async fn enter_running(&mut self) -> Result<Entry, Error> {
        loop {
            let proposal = NewState::new(StateType::Running);
            let answer = self.propose(&proposal, false).await?;
            let pause = match answer {
                Answer::Accept(state) => return Ok(self.started(&state)),
                Answer::Wait { delay_seconds, reason } => {
                    self.log(Level::Debug, format!("Waiting {delay_seconds} second(s): {reason}"));
                    Duration::from_secs_f64(delay_seconds)
                }
                Answer::Reject { state: Some(state), reason } => {
                    if state.entered_by(&proposal) {
                        return Ok(self.started(&state));
                    }
                    match state.kind {
                        StateType::Pending => STILL_PENDING,
                        StateType::Cancelling => return self.cancel().await.map(Entry::Refused),
                        _ => return Ok(Entry::Refused(self.leave(Some(&state), &reason))),
                    }
                }
                Answer::Reject { state, reason } | Answer::Abort { state, reason } => {
                    return Ok(Entry::Refused(self.leave(state.as_ref(), &reason)));
                }
            };
            tokio::select! {
                biased;
                interrupt = self.interrupts.next() => {
                    return self.end_interrupted(interrupt).await.map(Entry::Refused);
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn started(&mut self, state: &State) -> Entry {
        // A run that goes on after a pause keeps its count.
        self.run_count += u32::from(!std::mem::take(&mut self.resuming));
        self.run_count = self.run_count.max(1);
        let lease = state.state_details.deployment_concurrency_lease_id;
        Entry::Started { lease, state: Entered::from(state) }
    }

    /// Reports how an attempt ended. `None`: the server wants another one.
    async fn conclude(&mut self, outcome: Outcome) -> Result<Option<End>, Error> {
        match outcome {
            Outcome::Returned(Ok(value)) => {
                let mut state = NewState::new(StateType::Completed);
                // Not kept over an await: results need not be `Sync`.
                let text = self.flow.encode_result(&*value);
                if let Some(text) = text {
                    state.data = self.keep(text).await;
                }
                self.finish(state, End::Completed(value)).await
            }
            Outcome::Returned(Err(error)) => {
                let chain = chain(&*error);
                self.log(Level::Error, format!("Encountered exception during execution: {chain}"));
                let message = format!("Flow run encountered an exception: {chain}");
                self.finish(failed(message), End::Failed(error)).await
            }
            Outcome::TimedOut(timeout) => {
                let message = format!("Flow run exceeded timeout of {:?} second(s)", timeout.as_secs_f64());
                self.log(Level::Error, message.clone());
                let state = NewState::new(StateType::Failed).named("TimedOut").with_message(message.clone());
                self.finish(state, End::Failed(message.into())).await
            }
            Outcome::Panicked(message) => {
                let message = format!("Flow run panicked: {message}");
                self.crash(message).await.map(Some)
            }
            Outcome::Suspended => Ok(Some(self.suspended())),
            Outcome::Interrupted(interrupt) => self.end_interrupted(interrupt).await.map(Some),
        }
    }

    /// Keeps the result; says where it is.
    async fn keep(&self, text: Result<String, serde_json::Error>) -> Option<Value> {
        let kept = match text {
            Ok(text) => self.engine.results.keep_of_flow(text).await,
            Err(error) => Err(error.into()),
        };
        kept.inspect_err(|error| {
            self.log(Level::Error, format!("The result was not persisted: {}", chain(&**error)));
        })
        .ok()
    }

    /// Proposes a final state. `None`: the run is to be tried again.
    async fn finish(&mut self, state: NewState, end: End) -> Result<Option<End>, Error> {
        loop {
            match self.propose(&state, false).await? {
                Answer::Accept(state) => {
                    self.ended(&state).await;
                    return Ok(Some(end));
                }
                Answer::Wait { delay_seconds, .. } => {
                    tokio::time::sleep(Duration::from_secs_f64(delay_seconds)).await;
                }
                Answer::Reject { state: Some(now), reason } => {
                    if now.entered_by(&state) {
                        self.ended(&now).await;
                        return Ok(Some(end));
                    }
                    return match now.kind {
                        StateType::Cancelling => self.cancel().await.map(Some),
                        StateType::Scheduled if state.kind == StateType::Failed => {
                            self.retries_in_process = true;
                            let (now, then) = (now.name(), state.name);
                            self.log(
                                Level::Info,
                                format!(
                                    "Received non-final state '{now}' when proposing final state '{then}' and \
                                     will attempt to run again..."
                                ),
                            );
                            Ok(None)
                        }
                        _ => Ok(Some(self.leave(Some(&now), &reason))),
                    };
                }
                Answer::Reject { state, reason } | Answer::Abort { state, reason } => {
                    return Ok(Some(self.leave(state.as_ref(), &reason)));
                }
            }
        }
    }

    /// Stops working on the run and proposes nothing more.
    fn leave(&self, state: Option<&State>, reason: &str) -> End {
        let state = state.map_or_else(|| "unknown".to_owned(), describe);
        let line = format!("Left the flow run as it is, in state {state}: {reason}");
        self.log(Level::Info, line.clone());
        End::Left(line)
    }

    async fn end_interrupted(&mut self, interrupt: Interrupt) -> Result<End, Error> {
        match interrupt {
            Interrupt::Cancelled => self.cancel().await,
            Interrupt::NotOurs(stop) => {
                let why = match stop {
                    Stop::Gone => "The flow run was deleted.",
                    Stop::Cancelling | Stop::Cancelled | Stop::Suspended => {
                        "The flow run was cancelled by somebody else."
                    }
                };
                self.log(Level::Info, why.to_owned());
                Ok(End::Left(why.to_owned()))
            }
            Interrupt::Suspended => Ok(self.suspended()),
            Interrupt::SlotLost => {
                let message = "The concurrency slot of the deployment was lost. The flow run was ended, because \
                               another one may have the slot.";
                self.crash(message.to_owned()).await
            }
            Interrupt::Terminated => {
                // A worker that cancels a run ends its infrastructure: then it is a cancellation.
                let look = tokio::time::timeout(LAST_LOOK, self.engine.client.read_flow_run(self.id)).await;
                match look {
                    Ok(Ok(run)) if run.state_type == Some(StateType::Cancelling) => self.cancel().await,
                    // Only a deployment has a pool whose workers look for the run.
                    _ if self.engine.options.reschedule
                        && self.deployment.is_some()
                        && self.hand_back().await? =>
                    {
                        Ok(End::Left("The flow run was rescheduled.".to_owned()))
                    }
                    _ => self.crash(ABORTED.to_owned()).await,
                }
            }
        }
    }

    /// Leaves a suspended run to whoever resumes it.
    fn suspended(&self) -> End {
        let line = format!("Finished in state {}", py_state(StateType::Paused, "Suspended", ""));
        self.log(Level::Info, line.clone());
        End::Left(line)
    }

    /// Hands the run back to its work pool, to be run again from the beginning. `false` if the server does not take it.
    async fn hand_back(&self) -> Result<bool, Error> {
        if self.retries_in_process {
            self.allow_retry_from_ui().await;
        }
        let state = NewState::new(StateType::Scheduled).named("AwaitingRetry").scheduled_at(Timestamp::now());
        let taken = match self.propose(&state, false).await? {
            Answer::Accept(_) => true,
            Answer::Reject { state: Some(now), .. } => now.entered_by(&state),
            _ => false,
        };
        if taken {
            self.log(Level::Info, "Rescheduled flow run for resubmission in response to SIGTERM".to_owned());
        }
        Ok(taken)
    }

    /// Finishes a cancellation.
    async fn cancel(&self) -> Result<End, Error> {
        let entered = hooks::cancelling(None);
        self.log(Level::Info, entered.message.clone());
        self.call_hooks(&entered).await;
        let message = "Flow run was cancelled successfully.";
        force_cancelled(&self.engine, self.id, &self.name, &self.related, message).await?;
        Ok(End::Cancelled)
    }

    async fn crash(&self, message: String) -> Result<End, Error> {
        self.log(Level::Error, format!("Crash detected! {message}"));
        if self.retries_in_process {
            self.allow_retry_from_ui().await;
        }
        let state = NewState::new(StateType::Crashed).with_message(message.clone());
        match self.propose(&state, false).await? {
            Answer::Accept(state) => self.ended(&state).await,
            Answer::Reject { state: Some(state), .. } if state.kind == StateType::Cancelling => {
                return self.cancel().await;
            }
            Answer::Reject { reason, .. } | Answer::Abort { reason, .. } | Answer::Wait { reason, .. } => {
                tracing::warn!("the Prefect server does not take the crash: {reason}");
            }
        }
        Ok(End::Crashed(message))
    }

    /// A run that crashes while it is retried in process could never be retried from the UI: the poll of the
    /// workers passes it over (contract §5.7).
    async fn allow_retry_from_ui(&self) {
        let reset = async {
            let mut policy = self.engine.client.read_flow_run(self.id).await?.empirical_policy;
            policy.retry_type = None;
            let update = FlowRunUpdate { empirical_policy: Some(policy), ..FlowRunUpdate::default() };
            self.engine.client.update_flow_run(self.id, &update).await
        };
        match tokio::time::timeout(LAST_LOOK, reset).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a retry of this run from the UI will not start"),
            Err(_) => tracing::warn!("a retry of this run from the UI will not start: no answer in time"),
        }
    }

    async fn propose(&self, state: &NewState, force: bool) -> Result<Answer, Error> {
        let what = format!("set the flow run to {}", state.name);
        let client = &self.engine.client;
        let propose = || client.set_flow_run_state(self.id, state, force);
        if state.kind == StateType::Failed {
            self.engine.patience.insist_once(&what, propose, || self.retry_after_failure()).await
        } else {
            self.engine.patience.insist(&what, propose).await
        }
    }

    /// The answer to a failure that was lost on its way, if the run is to be tried again: its new state is the server's,
    /// by which the server does not know our proposal again.
    async fn retry_after_failure(&self) -> Result<Option<Answer>, Error> {
        let run = self.engine.client.read_flow_run(self.id).await?;
        let waits = run.state.filter(|state| state.kind == StateType::Scheduled);
        Ok(waits.map(|state| Answer::Reject { state: Some(state), reason: "Retrying".to_owned() }))
    }

    /// Runs the flow's hooks for a state. Gives the number of those that did not run to their end.
    pub(super) async fn call_hooks(&self, entered: &Entered) -> usize {
        hooks::call(self.flow.as_ref(), &self.parameters, entered, || self.new_run()).await
    }

    /// The run has entered its last state.
    async fn ended(&self, state: &State) {
        self.call_hooks(&Entered::from(state)).await;
        self.log(Level::Info, format!("Finished in state {}", describe(state)));
    }

    fn log(&self, level: Level, message: String) {
        let origin = report::Origin { flow_run: self.id, task_run: None, name: &self.name };
        self.engine.logs.write(level, origin, message);
    }
}

fn describe(state: &State) -> String {
    py_state(state.kind, state.name(), state.message.as_deref().unwrap_or_default())
}

pub(super) fn failed(message: String) -> NewState {
    let mut state = NewState::new(StateType::Failed).with_message(message);
    state.state_details.retriable = Some(false);
    state
}

/// Finishes a cancellation: the only state that is forced.
pub(super) async fn force_cancelled(
    engine: &Engine,
    id: FlowRunId,
    name: &str,
    related: &[Resource],
    message: &str,
) -> Result<(), Error> {
    let state = NewState::new(StateType::Cancelled).with_message(message);
    let call = || engine.client.set_flow_run_state(id, &state, true);
    engine.patience.insist("set the flow run to Cancelled", call).await?;
    let resource = Resource::new("prefect.runner.ferryman").named("ferryman");
    let event = Event::new("prefect.runner.cancelled-flow-run", Timestamp::now(), resource)
        .related(related.iter().cloned());
    engine.events.send(event).await;
    let origin = report::Origin { flow_run: id, task_run: None, name };
    engine.logs.write(Level::Info, origin, format!("Cancelled flow run '{name}'!"));
    Ok(())
}

/// What events about a run relate to: the run first, then its flow, deployment, queue, pool and tags.
pub(crate) fn related(run: &FlowRun, flow: &str, deployment: Option<&str>) -> Vec<Resource> {
    let mut related = vec![
        Resource::of("flow-run", run.id).role("flow-run").named(&run.name),
        Resource::of("flow", run.flow_id).role("flow").named(flow),
    ];
    let mut add = |kind: &str, id: Option<String>, name: Option<&str>| {
        if let Some(id) = id {
            let resource = Resource::of(kind, id).role(kind);
            related.push(match name {
                Some(name) => resource.named(name),
                None => resource,
            });
        }
    };
    add("deployment", run.deployment_id.map(|id| id.to_string()), deployment);
    add("work-queue", run.work_queue_id.map(|id| id.to_string()), run.work_queue_name.as_deref());
    add("work-pool", run.work_pool_id.map(|id| id.to_string()), run.work_pool_name.as_deref());
    related.extend(run.tags.iter().map(|tag| Resource::of("tag", tag).role("tag")));
    related
}
