//! One run in a process of its own.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prefect_api::flow_run::FlowRun;
use prefect_api::id::FlowRunId;
use prefect_api::state::{Answer, NewState, StateType};
use prefect_client::{Client, Error as ApiError};
use tokio::process::{Child as Process, Command};

use super::Stop;
use crate::engine::Patience;
use crate::error::chain;

/// How long a process that was asked to end may take; it reports its end in that time.
const GRACE: Duration = Duration::from_secs(75);
/// Time between two looks whether a run should have ended long ago.
const LOOK: Duration = Duration::from_secs(30);
/// A run that is cancelled ends itself within this time, or never will.
const CANCELLATION: SignedDuration = SignedDuration::from_secs(90);

/// A run of a served deployment.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) client: Client,
    pub(super) program: PathBuf,
    pub(super) id: FlowRunId,
    pub(super) patience: Arc<Patience>,
    pub(super) stop: Stop,
}

/// What is to be reported of a run whose process has ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The process has told all.
    Settled,
    /// Nobody else will say that it crashed.
    Crashed(String),
    /// It was to be cancelled, and is over.
    Cancelled,
}

impl Child {
    /// Claims the run, runs it, and gives its id back when all is told.
    pub(super) async fn run(self) -> FlowRunId {
        let id = self.id;
        match self.claim().await {
            Ok(true) => self.work().await,
            Ok(false) => {}
            Err(error) => tracing::warn!(flow_run.id = %id, error = chain(&error), "the run was not claimed"),
        }
        id
    }

    /// Proposes that the run is ours; the server gives it to one.
    async fn claim(&self) -> Result<bool, ApiError> {
        let pending = NewState::new(StateType::Pending).named("Submitting");
        match self.client.set_flow_run_state(self.id, &pending, false).await? {
            Answer::Accept(state) if state.kind == StateType::Pending => Ok(true),
            Answer::Reject { state: Some(state), .. } if state.entered_by(&pending) => Ok(true),
            answer => {
                tracing::info!(flow_run.id = %self.id, ?answer, "the run is not ours to run");
                Ok(false)
            }
        }
    }

    async fn work(&self) {
        tracing::info!(flow_run.id = %self.id, "running it");
        let spawned = self.command(&["execute"]).kill_on_drop(true).spawn();
        let ended = match spawned {
            Ok(process) => self.until_end(process).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(status) => self.conclude(status).await,
            Err(error) => self.report(Verdict::Crashed(format!("Flow run could not start: {error}"))).await,
        }
    }

    /// The program's `flow-run` with these arguments and the run's id. A process group of its own: Ctrl-C is ours
    /// to pass on.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("flow-run").args(arguments).arg(self.id.to_string()).process_group(0);
        command
    }

    async fn until_end(&self, mut process: Process) -> std::io::Result<ExitStatus> {
        let mut looks = tokio::time::interval(LOOK);
        looks.reset();
        loop {
            tokio::select! {
                biased;
                ended = process.wait() => return ended,
                () = self.stop.asked.cancelled() => break,
                _ = looks.tick() => if self.is_overdue().await {
                    tracing::warn!(flow_run.id = %self.id, "the cancelled run does not end itself: ending it");
                    process.start_kill()?;
                    return process.wait().await;
                }
            }
        }
        if let Some(pid) = process.id().and_then(|pid| i32::try_from(pid).ok())
            && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM)
        {
            tracing::debug!(%error, "the process has ended already");
        }
        tokio::select! {
            biased;
            ended = process.wait() => return ended,
            () = self.stop.hurried.cancelled() => {}
            () = tokio::time::sleep(GRACE) => {}
        }
        process.start_kill()?;
        process.wait().await
    }

    /// Whether the run was cancelled so long ago that its process will not notice any more.
    async fn is_overdue(&self) -> bool {
        let Ok(run) = self.client.read_flow_run(self.id).await else { return false };
        run.state.is_some_and(|state| {
            state.kind == StateType::Cancelling
                && Timestamp::now().duration_since(state.timestamp) > CANCELLATION
        })
    }

    async fn conclude(&self, status: ExitStatus) {
        let read = self.patience.insist("the end of a run", || self.client.read_flow_run(self.id)).await;
        match read {
            Ok(run) => self.report(verdict(&run, status)).await,
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::error!(flow_run.id = %self.id, error = chain(&error), "the run's end is not known");
            }
        }
    }

    /// Tells the server, and has the program run its hooks.
    async fn report(&self, verdict: Verdict) {
        let (state, force, hooks) = match verdict {
            Verdict::Settled => return,
            Verdict::Crashed(message) => {
                (NewState::new(StateType::Crashed).with_message(message), false, "crashed")
            }
            Verdict::Cancelled => (NewState::new(StateType::Cancelled), true, "cancelled"),
        };
        let told = self
            .patience
            .insist("the end of a run", || self.client.set_flow_run_state(self.id, &state, force))
            .await;
        match told {
            Ok(Answer::Accept(_)) => {}
            // Somebody was faster.
            Ok(_) => return,
            Err(error) => {
                tracing::error!(flow_run.id = %self.id, error = chain(&error), "the run's end was not reported");
                return;
            }
        }
        tracing::info!(flow_run.id = %self.id, state = state.name, message = state.message, "reported the run's end");
        // The program bounds its hooks itself, and tells what they came to.
        let hook = self.command(&["hook", hooks]).kill_on_drop(true).status();
        tokio::select! {
            ran = hook => if let Err(error) = ran {
                tracing::warn!(flow_run.id = %self.id, %error, "hooks were not run");
            },
            () = self.stop.hurried.cancelled() => {}
        }
    }
}

/// What the end of a run's process means for the run.
fn verdict(run: &FlowRun, status: ExitStatus) -> Verdict {
    let said = match (status.code(), status.signal()) {
        (Some(code), _) => format!("Process exited with status code: {code}."),
        (None, Some(signal)) => format!("Process was ended by signal {signal}."),
        (None, None) => "Process ended.".to_owned(),
    };
    match run.state_type {
        Some(StateType::Cancelling) => Verdict::Cancelled,
        Some(StateType::Pending | StateType::Running) => {
            Verdict::Crashed(format!("{said} The run had not reported its end."))
        }
        _ => Verdict::Settled,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_what_the_process_did_not_tell_is_reported() {
        let run = |kind: &str| -> FlowRun {
            let nil = Uuid::nil();
            serde_json::from_value(json!({"id": nil, "name": "n", "flow_id": nil, "state_type": kind}))
                .unwrap()
        };
        let (exited, killed) = (ExitStatus::from_raw(3 << 8), ExitStatus::from_raw(9));
        for kind in ["COMPLETED", "FAILED", "CRASHED", "CANCELLED", "PAUSED", "SCHEDULED"] {
            assert_eq!(verdict(&run(kind), exited), Verdict::Settled, "{kind}");
        }
        let crashed = |text: &str| Verdict::Crashed(format!("{text} The run had not reported its end."));
        assert_eq!(verdict(&run("RUNNING"), exited), crashed("Process exited with status code: 3."));
        assert_eq!(verdict(&run("PENDING"), killed), crashed("Process was ended by signal 9."));
        assert_eq!(
            verdict(&run("RUNNING"), ExitStatus::from_raw(0)),
            crashed("Process exited with status code: 0.")
        );
        assert_eq!(verdict(&run("CANCELLING"), killed), Verdict::Cancelled);
    }
}
