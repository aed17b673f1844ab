//! Processes on the worker's own machine.
//!
//! Each has a supervisor, a process that outlives the worker, and a directory with what must be remembered:
//! see [`supervisor`] and [`state`]. Workers share no memory with either, so that any worker can do for a
//! process what the one that made it could.

mod cgroup;
mod output;
mod plan;
mod state;
pub(crate) mod supervisor;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use prefect_api::id::FlowRunId;
use prefect_api::work_pool::BaseJobTemplate;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::{
    Attempt, Found, Infrastructure, Job, LaunchError, Launcher, Memory, Notes, Outcome, OutputSink, Phase,
};
use crate::redact;
use crate::status::Engine;
use plan::{Plan, ProcessConfig, plan};
use state::{Record, Slot, StateDirectory};
use supervisor::{Assignment, Order};
use watch::{Follower, gone, gone_within, order, sweep};

/// How long a supervisor may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Launches processes on this machine.
#[derive(Debug)]
pub struct ProcessLauncher {
    state: StateDirectory,
    /// The program that can be a supervisor.
    executable: PathBuf,
    host: String,
}

impl ProcessLauncher {
    /// Keeps its memory in the state directory that the environment names: `PREFECT_WORKER_STATE_DIRECTORY`,
    /// else a directory of this host below `PREFECT_HOME`, `XDG_STATE_HOME` or `HOME`.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let host = hostname();
        let directory = state_directory(environment, &host)?;
        Self::at(&directory, Path::new(supervisor::OWN_EXECUTABLE))
    }

    /// Keeps its memory in this directory, and takes this `prefect-worker` for supervisors.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn at(directory: &Path, executable: &Path) -> Result<Self, LaunchError> {
        let state = StateDirectory::open(directory).map_err(|error| LaunchError::Engine {
            action: "open the worker's state directory",
            message: format!("{}: {error}; name another in {STATE_DIRECTORY}", directory.display()),
        })?;
        Ok(Self { state, executable: executable.to_owned(), host: hostname() })
    }

    /// The attempt and what is recorded of it.
    fn recorded(&self, id: &str, action: &'static str) -> Result<(Slot, Record), LaunchError> {
        let slot = self.state.slot(id);
        match slot.record().map_err(failed(action))? {
            Some(record) => Ok((slot, record)),
            None => Err(LaunchError::NotFound { id: id.to_owned() }),
        }
    }

    /// Removes what earlier attempts for this run made and never started.
    async fn clear_unstarted(&self, run: FlowRunId) -> Result<(), LaunchError> {
        let action = "list processes";
        for slot in self.state.slots().map_err(failed(action))? {
            if slot.id.starts_with(&run.to_string())
                && phase(&slot).map_err(failed(action))? == Phase::Created
            {
                self.remove(&slot).await?;
            }
        }
        Ok(())
    }

    /// Starts a supervisor and waits until it is ready.
    async fn supervise(&self, slot: &Slot, job: &Job, plan: Plan) -> io::Result<Infrastructure> {
        let assignment = serde_json::to_vec(&Assignment {
            attempt: job.attempt.clone(),
            name: job.name.clone(),
            host: self.host.clone(),
            words: plan.words,
            working_dir: plan.working_dir,
        })?;
        // Dropped as a child it goes on, and is reaped when it ends.
        let mut child = Command::new(&self.executable)
            .arg0(supervisor::NAME)
            .arg(supervisor::SUPERVISE)
            .arg(slot.path())
            .current_dir("/")
            .env_clear()
            .envs(plan.environment)
            .env(watch::MARK, &slot.id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no standard input and output"));
        };
        stdin.write_all(&assignment).await?;
        drop(stdin);
        let answer = read_line(stdout).await?;
        if answer != supervisor::READY {
            return Err(io::Error::other(answer));
        }
        let record = slot.record()?.ok_or_else(|| io::Error::other("it has written no record"))?;
        Ok(infrastructure(slot, &record))
    }

    /// Ends whatever is left of an attempt, and removes all that is known of it.
    async fn remove(&self, slot: &Slot) -> Result<(), LaunchError> {
        let action = "remove the process";
        let removed = async {
            let slot = slot.clone();
            if order(&slot, Order::Discard)? && !gone_within(&slot, KILL_DEADLINE).await? {
                sweep(&slot);
                if !gone_within(&slot, KILL_DEADLINE).await? {
                    return Err(io::Error::other("it does not end, although it was killed"));
                }
            }
            tokio::task::spawn_blocking(move || slot.remove()).await?
        };
        removed.await.map_err(failed(action))
    }
}

#[async_trait]
impl Launcher for ProcessLauncher {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn default_template(&self) -> BaseJobTemplate {
        default_template()
    }

    fn place(&self) -> &str {
        &self.state.place
    }

    async fn check(&self) -> Result<Option<Engine>, LaunchError> {
        self.state.check().map_err(failed("write to the worker's state directory"))?;
        Ok(None)
    }

    async fn prepare(&self, job: &Job, _notes: &dyn Notes) -> Result<(), LaunchError> {
        let config = ProcessConfig::parse(&job.configuration)?;
        plan(job, &config, std::env::vars_os())?;
        if !config.ignored.is_empty() {
            tracing::warn!(flow_run.id = %job.attempt.flow_run_id, keys = ?config.ignored, "unknown keys in the job configuration");
        }
        Ok(())
    }

    async fn create(&self, job: &Job) -> Result<Infrastructure, LaunchError> {
        let action = "create the process";
        let config = ProcessConfig::parse(&job.configuration)?;
        let plan = plan(job, &config, std::env::vars_os())?;
        self.clear_unstarted(job.attempt.flow_run_id).await?;
        let slot = self.state.allocate(job.attempt.flow_run_id).map_err(failed(action))?;
        let supervised = timeout(READY_DEADLINE, self.supervise(&slot, job, plan)).await;
        let error = match supervised {
            Ok(Ok(infrastructure)) => return Ok(infrastructure),
            Ok(Err(error)) => failed(action)(error),
            Err(_) => LaunchError::Deadline { action, seconds: READY_DEADLINE.as_secs() },
        };
        if let Err(removal) = self.remove(&slot).await {
            tracing::warn!(attempt = slot.id, error = %removal, "process was not removed");
        }
        Err(error)
    }

    async fn start(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError> {
        let action = "start the process";
        let (slot, _) = self.recorded(&infrastructure.id, action)?;
        let started = || {
            if slot.is_supervised()? {
                slot.mark_started()?;
                order(&slot, Order::Start)?;
                return Ok(true);
            }
            Ok(slot.exit()?.is_some())
        };
        match started() {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = "its supervisor is gone, as after a reboot".to_owned();
                Err(LaunchError::Engine { action, message })
            }
            Err(error) => Err(failed(action)(error)),
        }
    }

    async fn wait(&self, infrastructure: &Infrastructure, output: Option<OutputSink>) -> Outcome {
        let slot = self.state.slot(&infrastructure.id);
        let ended = async {
            // Who wanted it to start may have died before the supervisor heard of it.
            if slot.is_started() {
                order(&slot, Order::Start)?;
            }
            gone(&slot).await
        };
        let mut follower = output.map(|sink| Follower::new(&slot, sink));
        let ended = {
            let mut ended = std::pin::pin!(ended);
            let follow = async {
                if let Some(follower) = &mut follower {
                    follower.follow().await;
                }
                std::future::pending().await
            };
            tokio::select! {
                ended = &mut ended => ended,
                never = follow => never,
            }
        };
        if let Err(error) = ended {
            tracing::error!(attempt = slot.id, %error, "the process cannot be watched");
        }
        if let Some(follower) = &mut follower {
            follower.finish().await;
        }
        outcome(&slot)
    }

    async fn list(&self, work_pool: &str) -> Result<Vec<Found>, LaunchError> {
        let mut found = Vec::new();
        for slot in self.state.slots().map_err(failed("list processes"))? {
            // One that cannot be read must not hide the others.
            match slot.record().and_then(|record| Ok((record, phase(&slot)?))) {
                Ok((Some(record), phase)) if record.attempt.work_pool == work_pool => found.push(Found {
                    infrastructure: infrastructure(&slot, &record),
                    attempt: record.attempt,
                    phase,
                }),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(attempt = slot.id, %error, "what is recorded of a process cannot be read");
                }
            }
        }
        Ok(found)
    }

    async fn tail(&self, infrastructure: &Infrastructure, lines: usize) -> Vec<String> {
        output::tail(self.state.slot(&infrastructure.id).path(), lines).unwrap_or_default()
    }

    async fn secrets(&self, infrastructure: &Infrastructure, attempt: &Attempt) -> Vec<SecretString> {
        let Ok((slot, record)) = self.recorded(&infrastructure.id, "read the environment") else {
            return Vec::new();
        };
        let environment = watch::environment(record.pid);
        let environment = String::from_utf8_lossy(&environment);
        let assignments = environment.split('\0').filter_map(|assignment| assignment.split_once('='));
        // A process of this id may be a stranger by now.
        if !assignments.clone().any(|assignment| assignment == (watch::MARK, slot.id.as_str())) {
            return Vec::new();
        }
        redact::secrets(assignments, &attempt.secret_env)
    }

    async fn tidy(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError> {
        self.remove(&self.state.slot(&infrastructure.id)).await
    }

    async fn kill(&self, infrastructure: &Infrastructure, grace: Duration) -> Result<(), LaunchError> {
        let action = "kill the process";
        let (slot, _) = self.recorded(&infrastructure.id, action)?;
        if !slot.is_started() {
            return Ok(());
        }
        let killed = async {
            if grace.is_zero() || !order(&slot, Order::Terminate)? || !gone_within(&slot, grace).await? {
                if !order(&slot, Order::Kill)? || gone_within(&slot, KILL_DEADLINE).await? {
                    return Ok(true);
                }
                sweep(&slot);
                return gone_within(&slot, KILL_DEADLINE).await;
            }
            Ok(true)
        };
        match killed.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = "it does not end, although it was killed".to_owned();
                Err(LaunchError::Engine { action, message })
            }
            Err(error) => Err(failed(action)(error)),
        }
    }

    async fn discard(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError> {
        self.remove(&self.state.slot(&infrastructure.id)).await
    }
}

/// The variable that names the state directory.
const STATE_DIRECTORY: &str = "PREFECT_WORKER_STATE_DIRECTORY";

/// Where the environment wants the state of processes. Homes may be shared among machines, hence the host.
fn state_directory(environment: &dyn Fn(&str) -> Option<String>, host: &str) -> Result<PathBuf, LaunchError> {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable(STATE_DIRECTORY)
        .or_else(|| Some(variable("PREFECT_HOME")?.join("worker").join(host)))
        .or_else(|| Some(variable("XDG_STATE_HOME")?.join("ferryman").join(host)))
        .or_else(|| Some(variable("HOME")?.join(".local/state/ferryman").join(host)));
    base.map(|base| base.join("processes")).ok_or_else(|| LaunchError::Engine {
        action: "find a state directory for the worker",
        message: format!("there is no HOME; name a directory in {STATE_DIRECTORY}"),
    })
}

/// The base job template of `process` pools: the data of `job-templates/process.json`.
pub(crate) fn default_template() -> BaseJobTemplate {
    // The file is part of the program and read by a test: it cannot be malformed here.
    serde_json::from_str(include_str!("../../../../../job-templates/process.json")).unwrap_or_default()
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().replace('/', "-");
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// The answer of a supervisor.
async fn read_line(stdout: impl tokio::io::AsyncRead + Unpin) -> io::Result<String> {
    let mut line = String::new();
    let mut stdout = tokio::io::BufReader::new(stdout).take(4096);
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line).await?;
    Ok(line.trim_end().to_owned())
}

fn infrastructure(slot: &Slot, record: &Record) -> Infrastructure {
    Infrastructure::new(&slot.id, &record.name, format!("{}:{}", record.host, record.pid))
}

fn phase(slot: &Slot) -> io::Result<Phase> {
    Ok(match (slot.is_started(), slot.is_supervised()?) {
        (true, true) => Phase::Running,
        (true, false) => Phase::Ended,
        (false, _) => Phase::Created,
    })
}

/// How an attempt without a supervisor ended.
fn outcome(slot: &Slot) -> Outcome {
    match slot.exit() {
        Ok(Some(exit)) => Outcome::Exited {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
            error: None,
            memory: Memory { limit: exit.memory_limit, peak: exit.peak_memory },
        },
        Ok(None) => {
            // The program has died with its supervisor; its children have not.
            sweep(slot);
            Outcome::Vanished
        }
        Err(error) => {
            tracing::error!(attempt = slot.id, %error, "the end of a process cannot be read");
            Outcome::Vanished
        }
    }
}

/// What a failure of the operating system means for an action.
fn failed(action: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |error| LaunchError::Engine { action, message: error.to_string() }
}

#[cfg(test)]
mod tests;
