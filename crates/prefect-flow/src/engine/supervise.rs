//! One attempt of a flow: its code, and all that may end it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::event::{Event, Resource};
use prefect_api::id::LeaseId;
use prefect_client::Error;
use serde_json::json;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::watch::{Stop, Watched};
use crate::context::{Context, Run};
use crate::error::{BoxError, chain, panic_message};
use crate::flow::AnyFlow;
use crate::parameters::Parameters;
use crate::slots::is_gone;

/// How long the server is to keep a deployment's slot without a renewal.
const LEASE: Duration = Duration::from_mins(5);
/// When the lease is renewed.
const RENEW: Duration = Duration::from_secs(225);
/// When it is renewed after a renewal that got no answer.
const RENEW_SOON: Duration = Duration::from_secs(10);
/// The server gives at most so many records at once; a limit that is higher is not watched.
const AT_WORK_LIMIT: u32 = 200;
/// Subflows have the same time of grace as the flow that they are in; then they have their own tasks to wait for
/// and an end to report, for which they get so many times as long.
const SUBFLOWS_LONGER: u32 = 4;

/// Why an attempt ends before its code does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// The run was cancelled.
    Cancelled,
    /// The run is none of ours any more: finished off, or deleted.
    NotOurs(Stop),
    /// The run was suspended from outside.
    Suspended,
    /// The slot of the deployment's limit was given to another run.
    SlotLost,
    /// The process is asked to end.
    Terminated,
}

/// How an attempt ended.
pub(super) enum Outcome {
    /// Its code returned.
    Returned(Result<Box<dyn Any + Send>, BoxError>),
    /// Its code panicked.
    Panicked(String),
    /// It took too long.
    TimedOut(Duration),
    /// It has suspended its run.
    Suspended,
    /// It was interrupted, and did not complete in its time of grace.
    Interrupted(Interrupt),
}

/// All that may interrupt a run.
#[derive(Debug)]
pub(super) struct Interrupts {
    pub(super) watched: Watched,
    pub(super) terminated: CancellationToken,
    /// The flow that this is a subflow of is to stop.
    pub(super) parent: Option<CancellationToken>,
    pub(super) slot_lost: CancellationToken,
}

impl Interrupts {
    /// Waits until the run is to stop. Cancel safe; gives the same again if asked again.
    pub(super) async fn next(&self) -> Interrupt {
        let parent = async {
            match &self.parent {
                Some(parent) => parent.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            stop = self.watched.stopped() => match stop {
                Stop::Cancelling => Interrupt::Cancelled,
                Stop::Suspended => Interrupt::Suspended,
                stop => Interrupt::NotOurs(stop),
            },
            () = self.terminated.cancelled() => Interrupt::Terminated,
            () = parent => Interrupt::Cancelled,
            () = self.slot_lost.cancelled() => Interrupt::SlotLost,
        }
    }
}

impl Interrupts {
    /// Waits until a run that has suspended itself is to stop for another reason.
    async fn but_suspension(&self) -> Interrupt {
        match self.next().await {
            Interrupt::Suspended => tokio::select! {
                () = self.terminated.cancelled() => Interrupt::Terminated,
                () = self.slot_lost.cancelled() => Interrupt::SlotLost,
            },
            interrupt => interrupt,
        }
    }
}

/// Runs the code of a flow until it returns or is interrupted.
pub(super) async fn attempt(
    flow: &Arc<dyn AnyFlow>,
    parameters: &Parameters,
    run: Arc<Run>,
    interrupts: &Interrupts,
    lease: Option<LeaseId>,
) -> Outcome {
    let engine = Arc::clone(&run.engine);
    let future = match flow.call(Context::of_flow(Arc::clone(&run)), parameters) {
        Ok(future) => future,
        Err(error) => return Outcome::Returned(Err(error.into())),
    };
    let mut background = JoinSet::new();
    // The first at once, however soon the flow ends.
    engine.send_detached(heartbeat(&run));
    background.spawn(heartbeats(Arc::clone(&run)));
    if let Some(lease) = lease {
        background.spawn(keep_slot(Arc::clone(&run), lease, interrupts.slot_lost.clone()));
    }
    let (tasks, subflows) = (run.tasks.clone(), run.subflows.clone());
    // In a task of its own: a panic is caught, and it can be dropped without us.
    let mut body = Body::new();
    body.spawn(async move {
        let result = future.await;
        tasks.close();
        tasks.wait().await;
        // Those that were dropped and undo their work.
        subflows.close();
        subflows.wait().await;
        result
    });
    let timeout = async {
        match flow.info().timeout {
            Some(timeout) => {
                tokio::time::sleep(timeout).await;
                timeout
            }
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        biased;
        joined = body.join_next() => returned(joined),
        () = run.suspended.cancelled() => {
            body.abort_all();
            run.tasks.close();
            tokio::select! {
                () = run.tasks.wait() => {}
                _ = interrupts.but_suspension() => {}
            }
            Outcome::Suspended
        }
        interrupt = interrupts.next() => {
            run.cancellation.cancel();
            let grace = engine.grace(interrupt == Interrupt::Terminated);
            let ended = tokio::select! {
                biased;
                // By itself, in the same moment: it waits for its end.
                () = run.suspended.cancelled() => None,
                ended = within(&engine, grace, &mut body) => ended,
            };
            match ended {
                // What is done is done; if the run is cancelling, the server refuses and we learn it so.
                Some(Outcome::Returned(Ok(value))) if !matches!(interrupt, Interrupt::NotOurs(_)) => {
                    Outcome::Returned(Ok(value))
                }
                Some(Outcome::Panicked(message)) => {
                    tracing::error!("the flow panicked while it stopped: {message}");
                    Outcome::Interrupted(interrupt)
                }
                _ => Outcome::Interrupted(interrupt),
            }
        }
        timeout = timeout => {
            run.cancellation.cancel();
            within(&engine, engine.grace(true), &mut body).await;
            Outcome::TimedOut(timeout)
        }
    };
    // Whatever is left (of a flow that outlived its grace, or whose tasks did) is dropped and says so.
    run.abort.cancel();
    tokio::select! {
        () = leave(&run, &mut body) => {}
        () = engine.hurried.cancelled() => {}
    }
    background.shutdown().await;
    outcome
}

/// Gives what is dropped the time to say so. Code that blocks its thread cannot be dropped, and is left behind.
async fn leave(run: &Run, body: &mut Body) {
    let last_words = run.engine.options.last_words;
    let code = async {
        body.shutdown().await;
        run.tasks.close();
        run.tasks.wait().await;
    };
    let subflows = async {
        run.subflows.close();
        run.subflows.wait().await;
    };
    let (code, subflows) = tokio::join!(
        tokio::time::timeout(last_words, code),
        tokio::time::timeout(last_words * SUBFLOWS_LONGER, subflows),
    );
    if code.is_err() {
        tracing::warn!("code of the flow blocks its thread and is left behind");
    }
    if subflows.is_err() {
        tracing::warn!(left = run.subflows.len(), "subflows did not end with their flow");
    }
}

/// The code of a flow at work.
type Body = JoinSet<Result<Box<dyn Any + Send>, BoxError>>;
type Joined = Option<Result<Result<Box<dyn Any + Send>, BoxError>, JoinError>>;

fn returned(joined: Joined) -> Outcome {
    match joined {
        Some(Ok(result)) => Outcome::Returned(result),
        Some(Err(error)) if error.is_panic() => Outcome::Panicked(panic_message(&*error.into_panic())),
        _ => Outcome::Panicked("its task vanished".to_owned()),
    }
}

/// How the code ends within its time of grace.
async fn within(engine: &Engine, grace: Duration, body: &mut Body) -> Option<Outcome> {
    tokio::select! {
        biased;
        joined = body.join_next() => Some(returned(joined)),
        () = engine.hurried.cancelled() => None,
        () = tokio::time::sleep(grace) => {
            tracing::warn!(?grace, "the flow did not stop in its time of grace and is dropped");
            None
        }
    }
}

/// Tells now and then that the run is alive.
async fn heartbeats(run: Arc<Run>) {
    let mut tick = tokio::time::interval(run.engine.options.heartbeat);
    tick.reset();
    loop {
        tick.tick().await;
        run.engine.events.send(heartbeat(&run)).await;
    }
}

fn heartbeat(run: &Run) -> Event {
    let resource = Resource::of("flow-run", run.id)
        .named(&run.name)
        .with("prefect.version", prefect_client::PREFECT_VERSION);
    // The first one related is the run itself.
    let related = run.related.iter().skip(1).cloned();
    Event::new("prefect.flow-run.heartbeat", Timestamp::now(), resource).related(related)
}

/// Renews the lease on the deployment's slot, from the first moment on. A server that is away is no reason to stop, nor
/// is one that has forgotten the lease: restarted, it still counts the slot, and frees it when the run ends.
async fn keep_slot(run: Arc<Run>, lease: LeaseId, lost: CancellationToken) {
    let client = run.engine.client();
    loop {
        let pause = match client.renew_lease(lease, LEASE).await {
            Ok(()) => RENEW,
            Err(error) if is_gone(&error) && run.gave_slot_back.load(Ordering::Relaxed) => return,
            Err(error) if is_gone(&error) => break,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "the lease on the deployment's concurrency slot was not renewed");
                RENEW_SOON
            }
        };
        tokio::time::sleep(pause).await;
    }
    Context::of_flow(Arc::clone(&run)).warn(
        "The lease on the deployment's concurrency slot is gone: the Prefect server was restarted, or could not be \
         reached for long. The flow run goes on as long as the deployment has no more runs at work than its limit.",
    );
    loop {
        match is_given_away(&run).await {
            Ok(true) => return lost.cancel(),
            Ok(false) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "nobody can tell whether the deployment's concurrency slot was given away"
                );
            }
        }
        tokio::time::sleep(RENEW).await;
    }
}

/// Whether the deployment has more runs at work than slots, so that one of them has ours.
async fn is_given_away(run: &Run) -> Result<bool, Error> {
    let Some(deployment) = run.deployment else { return Ok(false) };
    let client = run.engine.client();
    let Some(limit) = client.read_deployment(deployment).await?.global_concurrency_limit else {
        return Ok(false);
    };
    let filter = json!({
        "flow_runs": {
            "deployment_id": {"any_": [deployment]},
            "state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}},
        },
        "limit": AT_WORK_LIMIT,
    });
    let at_work = client.filter_flow_runs(&filter).await?.len();
    Ok(u32::try_from(at_work).is_ok_and(|at_work| at_work > limit.limit))
}
