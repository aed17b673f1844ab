//! Hooks: code that is run when a flow run or a task run enters a state.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use prefect_api::state::{State, StateType};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::error::{BoxError, chain, panic_message};
use crate::report::Level;

/// The state that a run has entered, as a hook is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// Its kind.
    pub kind: StateType,
    /// Its name: `TimedOut` is a failure, `Retrying` a running one.
    pub name: String,
    /// What a reader is told about it; empty if nothing is.
    pub message: String,
}

impl From<&State> for Entered {
    fn from(state: &State) -> Self {
        let message = state.message.clone().unwrap_or_default();
        Self { kind: state.kind, name: state.name().to_owned(), message }
    }
}

/// What hooks are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// The run is at work, for the first time or again.
    Running,
    /// It has completed.
    Completion,
    /// It has failed, for good.
    Failure,
    /// It is being cancelled: its code has ended.
    Cancellation,
    /// It has crashed.
    Crash,
}

impl Occasion {
    /// What the states of a kind are an occasion for.
    pub(crate) const fn of(kind: StateType) -> Option<Self> {
        match kind {
            StateType::Running => Some(Self::Running),
            StateType::Completed => Some(Self::Completion),
            StateType::Failed => Some(Self::Failure),
            StateType::Cancelling => Some(Self::Cancellation),
            StateType::Crashed => Some(Self::Crash),
            _ => None,
        }
    }
}

type Call<A> = dyn Fn(A, Entered) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// A hook that takes `A`: a context, and of a flow its parameters too.
pub(crate) struct Hook<A> {
    on: Occasion,
    name: String,
    call: Arc<Call<A>>,
}

impl<A> Clone for Hook<A> {
    fn clone(&self) -> Self {
        Self { on: self.on, name: self.name.clone(), call: Arc::clone(&self.call) }
    }
}

impl<A: Send + 'static> Hook<A> {
    pub(crate) fn new<R, E>(
        on: Occasion,
        name: impl Into<String>,
        hook: impl Fn(A, Entered) -> R + Send + Sync + 'static,
    ) -> Self
    where
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let call = move |arguments, entered| -> BoxFuture<'static, Result<(), BoxError>> {
            let run = hook(arguments, entered);
            Box::pin(async move { run.await.map_err(Into::into) })
        };
        Self { on, name: name.into(), call: Arc::new(call) }
    }

    pub(crate) fn is_for(&self, on: Occasion) -> bool {
        self.on == on
    }

    /// The hook, about to be run.
    pub(crate) fn due(&self, arguments: A, entered: &Entered) -> Due {
        let (call, entered) = (Arc::clone(&self.call), entered.clone());
        // Called inside, so that a panic before the first await is caught like any other.
        Due { name: self.name.clone(), run: Box::pin(async move { call(arguments, entered).await }) }
    }
}

/// A hook that has its arguments.
pub(crate) struct Due {
    name: String,
    run: BoxFuture<'static, Result<(), BoxError>>,
}

/// Runs hooks, one after the other, until `time_is_up`. What becomes of each is in the log of the run that `ctx` is
/// about, in Prefect's words. One that fails, panics or takes too long does not keep the others from being run, as
/// far as there is time. Gives the number of those that did not run to their end.
pub(crate) async fn run_all(
    ctx: &Context,
    due: Vec<Due>,
    entered: &Entered,
    time_is_up: impl Future<Output = ()>,
) -> usize {
    let mut time_is_up = std::pin::pin!(time_is_up);
    let (mut failed, mut late) = (0, false);
    for Due { name, run } in due {
        if late {
            ctx.log(Level::Error, format!("Hook '{name}' was not run: there is no time left for hooks"));
            failed += 1;
            continue;
        }
        let state = &entered.name;
        ctx.log(Level::Info, format!("Running hook '{name}' in response to entering state '{state}'"));
        // In a task of its own: a panic is caught, and one that blocks its thread can be left behind.
        let mut task = JoinSet::new();
        task.spawn(run);
        let problem = tokio::select! {
            biased;
            joined = task.join_next() => match joined {
                Some(Ok(Ok(()))) => None,
                Some(Ok(Err(error))) => Some(chain(&*error)),
                Some(Err(error)) if error.is_panic() => {
                    Some(format!("it panicked: {}", panic_message(&*error.into_panic())))
                }
                Some(Err(_)) | None => Some("it vanished".to_owned()),
            },
            () = &mut time_is_up => {
                late = true;
                Some("it took too long".to_owned())
            }
        };
        if let Some(problem) = problem {
            failed += 1;
            ctx.log(Level::Error, format!("An error was encountered while running hook '{name}': {problem}"));
        } else {
            ctx.log(Level::Info, format!("Hook '{name}' finished running successfully"));
        }
    }
    failed
}
