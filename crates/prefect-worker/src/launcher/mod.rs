//! The port behind which runs get their infrastructure.
//!
//! A launcher turns a [`Job`] into something that runs, in steps that a driver can interrupt between:
//! [`prepare`](Launcher::prepare) may take long and may be dropped at any time; [`create`](Launcher::create)
//! and [`start`](Launcher::start) are short and are never dropped half-way; [`wait`](Launcher::wait) may be
//! dropped and called again, also by another process; [`tidy`](Launcher::tidy) comes last. All that must be
//! remembered about a job is on the infrastructure itself (its [`Attempt`]), so that a later worker can
//! [`list`](Launcher::list) what is there and take over.

mod attempt;
mod command;
pub(crate) mod docker;
mod fields;
pub(crate) mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use prefect_api::work_pool::BaseJobTemplate;
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::status::Engine;

pub use attempt::{Attempt, Treatment};
pub use docker::DockerLauncher;
pub use process::ProcessLauncher;

/// What is to run for one flow run.
#[derive(Clone)]
#[non_exhaustive]
pub struct Job {
    /// Whose job it is, and what must be remembered until its end.
    pub attempt: Attempt,
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
    pub fn new(attempt: Attempt, name: impl Into<String>, command: impl Into<String>) -> Self {
        Self {
            attempt,
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
            .field("attempt", &self.attempt)
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

/// Whether two values of `infrastructure_pid` mean one infrastructure: a container's id is unique, whatever the
/// address at which a worker reaches its engine.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    fn container(pid: &str) -> Option<&str> {
        pid.rsplit(':').next().filter(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
    one == other || container(one).is_some_and(|id| container(other) == Some(id))
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
        /// Memory limit and highest use that was seen, in bytes, where they are known.
        memory: Memory,
    },
    /// It is gone and nobody knows how it ended.
    Vanished,
}

impl Outcome {
    /// The exit code, if it is known.
    pub fn code(&self) -> Option<i64> {
        match self {
            Self::Exited { code, .. } => Some(*code),
            Self::Vanished => None,
        }
    }
}

/// What is known of the memory of infrastructure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The most it could have, in bytes.
    pub limit: Option<u64>,
    /// The most it was seen to have, in bytes.
    pub peak: Option<u64>,
}

/// Where infrastructure is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made and never started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Ended,
}

/// Infrastructure that a launcher finds on its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The infrastructure.
    pub infrastructure: Infrastructure,
    /// What it remembers.
    pub attempt: Attempt,
    /// Where it is in its life.
    pub phase: Phase,
}

/// Lines for the log of a run, such as the progress of a pull.
pub trait Notes: Send + Sync {
    /// One line.
    fn note(&self, line: &str);
}

/// Why an engine refuses to make or start a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The image has no such command.
    CommandNotFound,
    /// The command is there and must not be executed.
    CommandNotExecutable,
    /// The image or its command is for another kind of machine.
    WrongArchitecture,
    /// The engine's disk is full.
    DiskFull,
    /// Another program listens on the port.
    PortTaken,
    /// Another container has the name.
    NameTaken,
    /// A restart of the engine came between: the container cannot be started any more, another one can.
    StartInterrupted,
}

impl Refusal {
    /// The word that stands before the text in a run's crash message.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::CommandNotFound => "CommandNotFound",
            Self::CommandNotExecutable => "CommandNotExecutable",
            Self::WrongArchitecture => "WrongArchitecture",
            Self::DiskFull => "DiskFull",
            Self::PortTaken => "PortTaken",
            Self::NameTaken => "NameTaken",
            Self::StartInterrupted => "StartInterrupted",
        }
    }

    /// What it is, and what can be done.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::CommandNotFound => {
                "the image has no such command (correct the job variable command, or choose an image that has it)"
            }
            Self::CommandNotExecutable => {
                "the command must not be executed (make it executable in the image, or let user be one who may)"
            }
            Self::WrongArchitecture => {
                "the image or its command is for another architecture (build the image for this machine, or choose \
                 another with the job variable platform)"
            }
            Self::DiskFull => {
                "the disk of the container engine is full (free space: old images and ended containers take most)"
            }
            Self::PortTaken => "the port is taken on this machine (publish another one)",
            Self::NameTaken => "another container has this name (choose another with the job variable name)",
            Self::StartInterrupted => {
                "the engine was restarted while it started the container (run it again)"
            }
        }
    }
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
    /// The engine refused for a reason that has a remedy.
    #[error("{action}: {}: {message}", refusal.remedy())]
    Refused {
        /// What was asked of it.
        action: &'static str,
        /// The reason.
        refusal: Refusal,
        /// The engine's words.
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
    /// A rule of the host's operator forbids it.
    #[error("launch this job: the policy of this worker forbids it ({rule}): {message}")]
    Forbidden {
        /// The rule, as the policy file names it.
        rule: String,
        /// What was asked for.
        message: String,
    },
    /// A step took longer than its deadline.
    #[error("{action}: it took longer than {seconds} s")]
    Deadline {
        /// The step.
        action: &'static str,
        /// The deadline, in seconds.
        seconds: u64,
    },
    /// The infrastructure does not exist (any more).
    #[error("find the infrastructure {id}: there is none of this id")]
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

    /// Whether the infrastructure is spoiled, and made anew it may start.
    pub const fn is_spoiled(&self) -> bool {
        matches!(self, Self::Refused { refusal: Refusal::StartInterrupted, .. })
    }

    /// The word that stands before the text in a run's crash message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Configuration { .. } => "InvalidJobConfiguration",
            Self::Image { .. } => "ImageNotFound",
            Self::Engine { .. } => "APIError",
            Self::Refused { refusal, .. } => refusal.kind(),
            Self::Unreachable { .. } => "EngineUnreachable",
            Self::Forbidden { .. } => "ForbiddenByPolicy",
            Self::Deadline { .. } => "DeadlineExceeded",
            Self::NotFound { .. } => "NotFound",
        }
    }
}

/// Where the output of infrastructure goes.
#[derive(Debug, Clone)]
pub struct OutputSink {
    /// Takes the pieces as they come. Bounded: a slow reader slows the writer.
    pub pieces: mpsc::Sender<Piece>,
    /// Only what was written after this moment is wanted; all of it if absent.
    pub after: Option<Timestamp>,
}

/// A piece of output: a line, or a part of a very long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// When it was written.
    pub at: Timestamp,
    /// What was written, with its line end.
    pub bytes: Vec<u8>,
}

/// A way to run jobs.
#[async_trait]
pub trait Launcher: fmt::Debug + Send + Sync {
    /// The type of work pools it serves.
    fn kind(&self) -> &'static str;

    /// The base job template that a new pool of this kind gets.
    fn default_template(&self) -> BaseJobTemplate;

    /// Identifies the place where the infrastructure is (an engine, a host), beyond restarts of worker and
    /// engine: only a worker on the same place can see what another has left.
    fn place(&self) -> &str;

    /// Checks that jobs can be run at all; tells which engine answered, if it takes one.
    async fn check(&self) -> Result<Option<Engine>, LaunchError>;

    /// Validates the job and makes what it needs available: may pull an image, and notes how that goes. May
    /// be dropped at any time.
    async fn prepare(&self, job: &Job, notes: &dyn Notes) -> Result<(), LaunchError>;

    /// Makes the infrastructure without starting it. Called twice for one flow run that never started, it
    /// makes one.
    async fn create(&self, job: &Job) -> Result<Infrastructure, LaunchError>;

    /// Starts it. Starting what runs already is no error.
    async fn start(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError>;

    /// Waits for its end, and survives restarts of the engine. May be dropped and called again.
    /// Without `output` nobody wants to know what it writes.
    async fn wait(&self, infrastructure: &Infrastructure, output: Option<OutputSink>) -> Outcome;

    /// All infrastructure on this place that was made for a work pool, in any phase, by any worker.
    async fn list(&self, work_pool: &str) -> Result<Vec<Found>, LaunchError>;

    /// The last lines of its output, at most `lines`, as they came. Empty if there are none to be had.
    async fn tail(&self, infrastructure: &Infrastructure, lines: usize) -> Vec<String>;

    /// Values in its environment that must not be shown: those that [`Attempt::secret_env`] names, and those
    /// under names that speak of secrets. Empty if it is gone.
    async fn secrets(&self, infrastructure: &Infrastructure, attempt: &Attempt) -> Vec<SecretString>;

    /// Starts `command` beside ended infrastructure: with the same image, environment and mounts, as something
    /// of its own that [`list`](Launcher::list) does not give. `None` if what the infrastructure was made of
    /// does not declare that it has hooks.
    async fn companion(
        &self,
        infrastructure: &Infrastructure,
        command: &[&str],
    ) -> Result<Option<Infrastructure>, LaunchError> {
        let _ = (infrastructure, command);
        Ok(None)
    }

    /// Removes it if the job asked for that. To be called once its end is reported: until then it is the
    /// only record of how it ended.
    async fn tidy(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError>;

    /// Ends it: asks, and after `grace` forces.
    async fn kill(&self, infrastructure: &Infrastructure, grace: Duration) -> Result<(), LaunchError>;

    /// Removes what never ran. What is gone already is no error.
    async fn discard(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError>;
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn a_container_is_the_same_at_any_address_of_its_engine() {
        let (one, other) = ("ab".repeat(32), "cd".repeat(32));
        assert!(is_same(&format!("http+docker://localhost:{one}"), &format!("tcp://host:2375:{one}")));
        assert!(!is_same(
            &format!("http+docker://localhost:{one}"),
            &format!("http+docker://localhost:{other}")
        ));
        assert!(is_same("host:12", "host:12"));
        assert!(!is_same("host:12", "other:12"), "a process id is a host's own");
    }
}
