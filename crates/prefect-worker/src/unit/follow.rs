//! From infrastructure that runs to its end: its output, its deadlines, its cancellation.

use std::time::Duration;

use jiff::Timestamp;
use prefect_api::flow_run::FlowRun;
use prefect_api::state::{NewState, StateType};

use super::report::Ending;
use super::{Launched, RETRY_MAX, Unit, entered_by, lines};
use crate::error::chain;
use crate::launcher::{Attempt, Infrastructure, LaunchError, Outcome};
use crate::metrics::EndCause;
use crate::run_log::RunLog;
use crate::status::RunPhase;

/// What makes the worker act while infrastructure runs.
enum Turn {
    /// It ended.
    Ended(Outcome),
    /// The worker leaves; whoever comes next goes on.
    Left,
    /// The run is to be cancelled.
    Cancelled,
    /// The run has not reported itself in time.
    Silent,
}

impl Unit {
    /// Waits for the end of the infrastructure and reports it; gives the cause of the end.
    pub(super) async fn follow(&self, launched: Launched, log: &RunLog) -> EndCause {
        self.entry.set_phase(RunPhase::Running);
        let Launched { infrastructure, attempt, subject, submitted, last_event, adopted } = &launched;
        let (sink, passing_on) = self.output(infrastructure, attempt, *adopted, log).await;
        let wait = self.shared.launcher.wait(infrastructure, sink);
        let mut end = std::pin::pin!(async { tokio::join!(wait, passing_on).0 });

        if attempt.treatment.report_exit_state && !adopted {
            self.report_running(log).await;
        }
        let (outcome, ending) = match self.turn(&mut end, attempt, *adopted).await {
            Turn::Left => return self.leave(infrastructure),
            Turn::Ended(outcome) => (Some(outcome), Ending::ItsOwn),
            Turn::Cancelled => {
                self.entry.set_phase(RunPhase::Ending);
                self.cancel_it(&mut end, infrastructure, attempt, log).await
            }
            Turn::Silent => {
                self.entry.set_phase(RunPhase::Ending);
                let seconds = attempt.treatment.start_timeout_seconds.unwrap_or_default();
                log.error(&format!(
                    "Flow run '{}' did not report itself within {seconds} s; ending it",
                    self.run.name
                ));
                self.log_tail(infrastructure, attempt, log).await;
                let grace = Duration::from_secs(attempt.treatment.cancellation_grace_seconds) / 3;
                (self.kill(&mut end, infrastructure, grace, log).await, Ending::Silence)
            }
        };
        let Some(outcome) = outcome else { return self.leave(infrastructure) };
        self.entry.set_phase(RunPhase::Ending);

        if let Some(subject) = subject {
            self.shared.events.container(subject, infrastructure, "exited", *last_event).await;
        }
        let cause = self.report(&outcome, ending, infrastructure, attempt, log).await;
        if let Some(subject) = subject {
            let code = outcome.code().unwrap_or(-1);
            self.shared.events.executed(subject, &infrastructure.pid, code, *submitted).await;
        }
        if let Err(error) = self.shared.launcher.tidy(infrastructure).await {
            log.warn(&format!("'{}' was not removed: {}", infrastructure.name, chain(&error)));
        }
        cause
    }

    fn leave(&self, infrastructure: &Infrastructure) -> EndCause {
        tracing::info!(flow_run.id = %self.run.id, infra.id = infrastructure.id, "leaving it to the next worker");
        EndCause::Detached
    }

    /// Waits for the first thing to act upon.
    async fn turn(
        &self,
        end: &mut (impl Future<Output = Outcome> + Unpin),
        attempt: &Attempt,
        adopted: bool,
    ) -> Turn {
        let silent = self.silent(attempt, adopted);
        let stopped = async {
            self.shutdown.cancels_runs().await;
            self.propose_cancelling().await;
        };
        tokio::select! {
            biased;
            outcome = end => Turn::Ended(outcome),
            () = self.shutdown.leaves_runs() => Turn::Left,
            () = self.cancel.cancelled() => Turn::Cancelled,
            () = stopped => Turn::Cancelled,
            () = silent => Turn::Silent,
        }
    }

    /// Resolves when the run should have reported itself and has not. An outage of the server is no silence
    /// of the run: its time starts anew.
    async fn silent(&self, attempt: &Attempt, adopted: bool) {
        let treatment = &attempt.treatment;
        let Some(seconds) = treatment.start_timeout_seconds.filter(|_| !treatment.report_exit_state) else {
            return std::future::pending().await;
        };
        let timeout = Duration::from_secs(seconds);
        let due = self
            .run
            .next_scheduled_start_time
            .filter(|_| !adopted)
            .map(|due| due.duration_since(Timestamp::now()));
        let early = due.and_then(|early| Duration::try_from(early).ok()).unwrap_or_default();
        tokio::time::sleep(early + timeout).await;
        loop {
            match self.shared.client.read_flow_run(self.run.id).await {
                Ok(run)
                    if run.state_type == Some(StateType::Pending) && entered_by(&run, &attempt.proposals) =>
                {
                    return;
                }
                Ok(_) => return std::future::pending().await,
                Err(error) => {
                    tracing::debug!(flow_run.id = %self.run.id, error = chain(&error), "not known whether the run has started");
                    tokio::time::sleep(timeout).await;
                }
            }
        }
    }

    /// Lets the flow end itself if it can, then ends it. `None` if the worker left meanwhile.
    async fn cancel_it(
        &self,
        end: &mut (impl Future<Output = Outcome> + Unpin),
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        log: &RunLog,
    ) -> (Option<Outcome>, Ending) {
        let grace = Duration::from_secs(attempt.treatment.cancellation_grace_seconds);
        let Some(run) = self.read_run().await else {
            return (self.kill(end, infrastructure, grace / 3, log).await, Ending::Cancellation);
        };
        if !listens(&run, attempt) {
            return (self.kill(end, infrastructure, grace / 3, log).await, Ending::CancelledBeforeItRan);
        }
        tokio::select! {
            biased;
            outcome = &mut *end => return (Some(outcome), Ending::ItsOwn),
            () = self.shutdown.leaves_runs() => return (None, Ending::ItsOwn),
            () = tokio::time::sleep(grace * 2 / 3) => {}
        }
        log.warn(&format!(
            "Flow run '{}' did not end itself within {} s of its cancellation; ending '{}'",
            self.run.name,
            (grace * 2 / 3).as_secs(),
            infrastructure.name
        ));
        (self.kill(end, infrastructure, grace / 3, log).await, Ending::Cancellation)
    }

    /// Ends the infrastructure, and tries again as long as nobody has seen it end. `None` if the worker left
    /// meanwhile.
    async fn kill(
        &self,
        end: &mut (impl Future<Output = Outcome> + Unpin),
        infrastructure: &Infrastructure,
        grace: Duration,
        log: &RunLog,
    ) -> Option<Outcome> {
        let insist = async {
            let mut pause = Duration::from_secs(1);
            loop {
                match self.shared.launcher.kill(infrastructure, grace).await {
                    Ok(()) | Err(LaunchError::NotFound { .. }) => {
                        return std::future::pending::<std::convert::Infallible>().await;
                    }
                    Err(error) => log.warn(&format!("Error killing infrastructure: {}", chain(&error))),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        };
        tokio::select! {
            biased;
            outcome = end => Some(outcome),
            () = self.shutdown.leaves_runs() => None,
            never = insist => match never {},
        }
    }

    /// Where the output goes, and what passes it on.
    async fn output(
        &self,
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        adopted: bool,
        log: &RunLog,
    ) -> (Option<crate::launcher::OutputSink>, impl Future<Output = ()> + use<>) {
        let mut stdout = attempt.treatment.stream_output.then(|| self.shared.output.clone());
        if let Some(stdout) = &mut stdout {
            // What came before was streamed by the worker before.
            stdout.after = adopted.then(Timestamp::now);
        }
        if !attempt.treatment.log_output {
            return (stdout, lines::nothing());
        }
        let secrets = self.shared.launcher.secrets(infrastructure, attempt).await;
        let after = if adopted { lines::last_logged(&self.shared.client, self.run.id).await } else { None };
        let (sink, passing_on) = lines::to_log(log.clone(), secrets, stdout, after);
        (Some(sink), passing_on)
    }

    /// For programs that do not report themselves.
    async fn report_running(&self, log: &RunLog) {
        let running = NewState::new(StateType::Running);
        let told = self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &running, false)).await;
        if let Some(answer) = told {
            tracing::debug!(flow_run.id = %self.run.id, ?answer, "reported as running");
        } else {
            log.warn("The run could not be reported as running");
        }
    }

    /// The worker stops and is to take its runs with it.
    async fn propose_cancelling(&self) {
        let state = NewState::new(StateType::Cancelling)
            .with_message(format!("Worker '{}' is stopping and cancels its runs.", self.shared.worker));
        self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await;
    }
}

/// Whether something inside has reported itself, and hence may notice a cancellation.
fn listens(run: &FlowRun, attempt: &Attempt) -> bool {
    run.run_count > attempt.run_count && !attempt.treatment.report_exit_state
}
