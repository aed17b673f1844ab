//! Flows and tasks in Rust, and the engine that executes a flow run and reports it to a Prefect server.
//!
//! A flow is an `async fn(Context, Parameters) -> Result<T, E>`; a task is a closure that is run by
//! [`Context::task`]. What the server and its UI see of a run is what they see of a Python one.
//!
//! ```no_run
//! use prefect_flow::{BoxError, Context, Flow, Program};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! struct Greeting {
//!     /// Who is greeted.
//!     name: String,
//! }
//!
//! async fn greet(ctx: Context, greeting: Greeting) -> Result<(), BoxError> {
//!     let words = ctx.task("compose").run(|_| compose(&greeting)).await?;
//!     ctx.info(words);
//!     Ok(())
//! }
//!
//! async fn compose(greeting: &Greeting) -> Result<String, BoxError> {
//!     Ok(format!("Hello, {}!", greeting.name))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Program::new("greeter", "1.0").flow(Flow::new("greet", greet).run_name("greet-{name}")).main()
//! }
//! ```
//!
//! # What a run survives
//!
//! Orchestration must not cost the work: while the server is away, states are proposed again until a deadline
//! (15 minutes), events and artifacts wait in bounded queues, log lines in a bounded buffer that drops its
//! oldest and says so. What was on its way when a connection broke is looked for before it is sent again, so that
//! it is there once. Work stops when the server says that the run is cancelled or gone.

mod block;
mod context;
mod deploy;
mod deployment_run;
mod engine;
mod entry;
mod error;
mod exit;
mod flow;
mod hook;
mod parameters;
mod pause;
mod program;
mod record;
mod report;
mod results;
mod serve;
mod slots;
mod subflow;
mod task;
mod terminal;

pub use context::Context;
pub use deployment_run::{DeploymentRun, DeploymentRunError};
pub use error::{
    ArtifactError, BoxError, Cancelled, EventError, LimitError, RecordError, SubflowError, TaskCause,
    TaskError, chain,
};
pub use exit::Exit;
pub use flow::Flow;
pub use hook::Entered;
pub use parameters::ParameterError;
pub use pause::{Pause, PauseError};
pub use program::Program;
pub use report::Progress;
pub use results::{Cache, LocalStorage, ResultError, ResultStorage, StorageBlock, StorageFuture};
pub use slots::Slots;
pub use subflow::Subflow;
pub use task::{Delays, Done, Handle, Persisted, Submitted, Task, Upstream};

pub use prefect_api::event::{Event, Resource};
pub use prefect_api::record::BlockDocument;
pub use prefect_api::state::StateType;
pub use prefect_client as client;
pub use schemars;
pub use secrecy::SecretString;
pub use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod tests;
