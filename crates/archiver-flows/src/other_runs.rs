//! Other flow runs that do the same at the same time: waiting for one of them, or giving way to it.
//!
//! A run that was killed can leave subflow runs behind that look as if they were at work. A subflow run therefore
//! counts as alive only while the run that started it is.

use std::time::Duration;

use archiver::DatasetId;
use prefect_api::flow_run::FlowRun;
use prefect_api::id::FlowRunId;
use prefect_api::state::StateType;
use prefect_flow::{Cancelled, Context, Flow, client};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Waits between looks at the other run: from the first, doubled up to the last.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_mins(1);

/// Runs of one name that are looked at; more mean many dead ones.
const CANDIDATES: usize = 20;

/// States of a run that is at work or about to be.
pub(crate) const UNFINISHED: [&str; 3] = ["SCHEDULED", "PENDING", "RUNNING"];

/// States of a run that may be changing something. One that is about to begin will look for others itself.
pub(crate) const AT_WORK: [&str; 2] = ["RUNNING", "CANCELLING"];

/// Which run to wait for.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitFor {
    /// The flow run.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub(crate) flow_run_id: FlowRunId,
}

/// Why nobody waited to the end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WaitError {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Why a dataset is not archived by this run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAlone {
    #[error("archive {dataset}: flow run {run} is archiving it")]
    Busy { dataset: DatasetId, run: FlowRunId },
    #[error("find out whether another run is archiving {dataset}")]
    Unknown { dataset: DatasetId, source: client::Error },
}

impl NotAlone {
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unknown { source, .. } if source.is_transient())
    }

    /// What the reader can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { run, .. } => Some(format!(
                "only one run at a time may archive a dataset; start the job again when flow run {run} has ended. \
                 If its process is gone, set it to Crashed by hand"
            )),
            Self::Unknown { .. } => None,
        }
    }
}

/// An error if another run is archiving `dataset`, or if nobody can tell. `parent` is the run that started this one.
///
/// To be asked by a run that is Running itself: of two that begin at the same time at least one then sees the
/// other. Both may give way, never neither.
pub(crate) async fn ensure_alone(
    ctx: &Context,
    parent: FlowRunId,
    dataset: &DatasetId,
) -> Result<(), NotAlone> {
    match find(ctx, ctx.flow_run_name(), &AT_WORK, parent).await {
        Ok(None) => Ok(()),
        Ok(Some(run)) => Err(NotAlone::Busy { dataset: dataset.clone(), run }),
        Err(source) => Err(NotAlone::Unknown { dataset: dataset.clone(), source }),
    }
}

/// `wait_for_retrieval_flow`: waits until another run has ended. Gives whether it completed.
pub(crate) fn waiting_flow() -> Flow<WaitFor, bool> {
    Flow::new("wait_for_retrieval_flow", wait)
        .description("Waits until another run has retrieved the dataset.")
}

/// How another run stands.
enum Sight {
    AtWork,
    /// It has ended, in the state of this name.
    Ended(String),
    /// It looks as if it were at work, but the run that started it has ended.
    Dead,
}

async fn wait(ctx: Context, WaitFor { flow_run_id }: WaitFor) -> Result<bool, WaitError> {
    let mut pause = FIRST_LOOK;
    ctx.info(format!("waiting for flow run {flow_run_id}, which retrieves the same dataset"));
    loop {
        match look_at(&ctx, flow_run_id).await {
            Ok(Sight::Ended(state)) => {
                ctx.info(format!("flow run {flow_run_id} has ended: {state}"));
                return Ok(state == "Completed");
            }
            Ok(Sight::Dead) => {
                ctx.warn(format!("flow run {flow_run_id} is not at work: the run that started it has ended"));
                return Ok(false);
            }
            Ok(Sight::AtWork) => {}
            Err(error) if error.is_transient() => ctx.warn(format!("the other run was not found: {error}")),
            Err(error) => return Err(error.into()),
        }
        ctx.unless_cancelled(tokio::time::sleep(pause)).await?;
        pause = (pause * 2).min(LAST_LOOK);
    }
}

async fn look_at(ctx: &Context, id: FlowRunId) -> Result<Sight, client::Error> {
    let run = ctx.client().read_flow_run(id).await?;
    if has_ended(&run) {
        return Ok(Sight::Ended(run.state_name.unwrap_or_default()));
    }
    Ok(if is_alive(ctx, &run, ctx.flow_run_id()).await? { Sight::AtWork } else { Sight::Dead })
}

/// A run of this name in one of these states, other than this one, that was not started by `parent`.
pub(crate) async fn find(
    ctx: &Context,
    name: &str,
    states: &[&str],
    parent: FlowRunId,
) -> Result<Option<FlowRunId>, client::Error> {
    let filter = json!({
        "flow_runs": {
            "name": {"any_": [name]},
            "state": {"type": {"any_": states}},
        },
        "sort": "START_TIME_DESC",
        "limit": CANDIDATES,
    });
    for run in ctx.client().filter_flow_runs(&filter).await? {
        if run.id != ctx.flow_run_id() && is_alive(ctx, &run, parent).await? {
            return Ok(Some(run.id));
        }
    }
    Ok(None)
}

fn has_ended(run: &FlowRun) -> bool {
    run.state_type.is_some_and(StateType::is_final)
}

/// Whether a run that has not ended can still be at work: not if `own` started it, in an
/// attempt that died, nor if the run that started it has ended.
async fn is_alive(ctx: &Context, run: &FlowRun, own: FlowRunId) -> Result<bool, client::Error> {
    let Some(parent_task) = run.parent_task_run_id else { return Ok(true) };
    let filter = json!({"task_runs": {"id": {"any_": [parent_task]}}});
    let parents = ctx.client().filter_task_runs(&filter).await?;
    let Some(parent) = parents.into_iter().find_map(|task| task.flow_run_id) else { return Ok(true) };
    if parent == own {
        return Ok(false);
    }
    Ok(!has_ended(&ctx.client().read_flow_run(parent).await?))
}
