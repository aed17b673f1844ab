//! The port behind which runs get their infrastructure.
//!
//! A launcher turns a [`Job`] into something that runs, in steps that a driver can interrupt between:
//! [`prepare`](Launcher::prepare) may take long and may be dropped at any time; [`create`](Launcher::create)
//! and [`start`](Launcher::start) are short and are never dropped half-way; [`wait`](Launcher::wait) may be
//! dropped and called again, also by another process; [`tidy`](Launcher::tidy) comes last. All that a launcher must remember about a job is on
//! the infrastructure itself, so that a later worker can take over.

pub(crate) mod docker;
mod fields;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use prefect_api::id::FlowRunId;
use prefect_api::work_pool::BaseJobTemplate;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

pub use docker::DockerLauncher;

/// What is to run for one flow run.
#[derive(Clone)]
#[non_exhaustive]
pub struct Job {
    /// The flow run.
    pub flow_run_id: FlowRunId,
    /// Name of the work pool it comes from.
    pub work_pool: String,
    /// Name of the worker that launches it.
    pub worker: String,
    /// The name the infrastructure should bear.
    pub name: String,
    /// The command line.
    pub command: String,
    /// Environment that every job gets: API settings, the run's id. [`Job::env`] goes over it.
    pub base_env: BTreeMap<String, String>,
    /// Environment of the job configuration; `None` removes the variable.
    pub env: BTreeMap<String, Option<String>>,
    /// Labels, in Prefect's form (`prefect.io/flow-run-id`).
    pub labels: BTreeMap<String, String>,
    /// The rest of the job configuration: what only this kind of launcher understands.
    pub configuration: Map<String, Value>,
}

impl Job {
    /// A job that only has a name and a command; the fields are there for the rest.
    pub fn new(flow_run_id: FlowRunId, name: impl Into<String>, command: impl Into<String>) -> Self {
        Self {
            flow_run_id,
            work_pool: String::new(),
            worker: String::new(),
            name: name.into(),
            command: command.into(),
            base_env: BTreeMap::new(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            configuration: Map::new(),
        }
    }
}

impl fmt::Debug for Job {
    // Environment and configuration may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("flow_run_id", &self.flow_run_id)
            .field("name", &self.name)
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

/// Infrastructure that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Infrastructure {
    /// The launcher's own id of it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The id as the server stores it (`infrastructure_pid`): with the address of the engine.
    pub pid: String,
}

impl Infrastructure {
    /// Infrastructure under its id, its name, and the id as the server stores it.
    pub fn new(id: impl Into<String>, name: impl Into<String>, pid: impl Into<String>) -> Self {
        Self { id: id.into(), name: name.into(), pid: pid.into() }
    }
}

/// How infrastructure ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its process ended.
    Exited {
        /// The exit code; 128 + n after signal n.
        code: i64,
        /// The kernel killed it because it was out of memory.
        out_of_memory: bool,
        /// What the engine says went wrong, if anything.
        error: Option<String>,
    },
    /// It is gone and nobody knows how it ended.
    Vanished,
}

/// Why infrastructure could not be made, watched or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The job configuration is wrong.
    #[error("use the job configuration: {message}")]
    Configuration {
        /// What is wrong, and where.
        message: String,
    },
    /// The image is not there and was not, or could not be, pulled.
    #[error("find the image {image}: {message}")]
    Image {
        /// The image reference.
        image: String,
        /// Why it is not there.
        message: String,
    },
    /// The engine refused.
    #[error("{action}: {message}")]
    Engine {
        /// What was asked of it.
        action: &'static str,
        /// Its words.
        message: String,
    },
    /// The engine cannot be reached.
    #[error("reach the container engine at {address}: {message}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What happened.
        message: String,
    },
    /// The infrastructure does not exist (any more).
    #[error("find the container {id}: the engine has none of this id")]
    NotFound {
        /// The launcher's id of it.
        id: String,
    },
}

impl LaunchError {
    /// Whether the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The word that stands before the text in a run's crash message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Configuration { .. } => "InvalidJobConfiguration",
            Self::Image { .. } => "ImageNotFound",
            Self::Engine { .. } => "APIError",
            Self::Unreachable { .. } => "EngineUnreachable",
            Self::NotFound { .. } => "NotFound",
        }
    }
}

/// Where the output of infrastructure goes, in pieces as they come. Bounded: a slow reader slows the writer.
pub type OutputSink = mpsc::Sender<Vec<u8>>;

/// A way to run jobs.
#[async_trait]
pub trait Launcher: fmt::Debug + Send + Sync {
    /// The type of work pools it serves.
    fn kind(&self) -> &'static str;

    /// The base job template that a new pool of this kind gets.
    fn default_template(&self) -> BaseJobTemplate;

    /// Checks that jobs can be run at all.
    async fn check(&self) -> Result<(), LaunchError>;

    /// Validates the job and makes what it needs available: may pull an image. May be dropped at any time.
    async fn prepare(&self, job: &Job) -> Result<(), LaunchError>;

    /// Makes the infrastructure without starting it. Called twice for one flow run that never started, it
    /// makes one.
    async fn create(&self, job: &Job) -> Result<Infrastructure, LaunchError>;

    /// Starts it. Starting what runs already is no error.
    async fn start(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError>;

    /// Waits for its end, and survives restarts of the engine. May be dropped and called again.
    async fn wait(&self, infrastructure: &Infrastructure, output: OutputSink) -> Outcome;

    /// Removes it if the job asked for that. To be called once its end is reported: until then it is the
    /// only record of how it ended.
    async fn tidy(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError>;

    /// Ends it: asks, and after `grace` forces.
    async fn kill(&self, infrastructure: &Infrastructure, grace: Duration) -> Result<(), LaunchError>;

    /// Removes what never ran. What is gone already is no error.
    async fn discard(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError>;
}
