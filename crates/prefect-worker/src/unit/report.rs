//! What the server must be told about a run, through every outage.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::{FlowRun, FlowRunPolicy, FlowRunUpdate};
use prefect_api::state::{Answer, NewState, StateType};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{NOTHING_THERE, RETRY_MAX, Unit};
use crate::error::chain;
use crate::exit::{self, Claim, Verdict, untouched, verdict};
use crate::launcher::{Attempt, Infrastructure, Outcome};
use crate::metrics::EndCause;
use crate::redact::redact;
use crate::run_log::RunLog;

/// Label of a run: how often it was started again after a crash.
const RETRIES_LABEL: &str = "ferryman.crash-retries";
/// The longest pause before such a start, in seconds.
const LONGEST_RETRY_DELAY: u64 = 3600;
/// How long a hook may take.
const HOOK_DEADLINE: Duration = Duration::from_mins(5);
/// How many of the last lines of output are shown, and how much of each.
const TAIL_LINES: usize = 50;
const TAIL_WIDTH: usize = 1000;
/// Texts of engines and registries have no bounds of their own; messages of states have.
const MESSAGE_LIMIT: usize = 10_000;

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// There was none to make, or nobody to take it.
    Nothing,
    /// The server took it.
    Accepted,
    /// The run is in another state than we thought.
    Outdated,
}

impl Told {
    fn by(answer: Option<&Answer>) -> Self {
        match answer {
            Some(Answer::Accept(_)) => Self::Accepted,
            Some(Answer::Reject { .. } | Answer::Abort { .. }) => Self::Outdated,
            Some(Answer::Wait { .. }) | None => Self::Nothing,
        }
    }
}

/// How infrastructure came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody here had to do with it.
    ItsOwn,
    /// We ended it: the run was cancelled before it reported itself.
    CancelledBeforeItRan,
    /// We ended it: the run was cancelled and did not end itself.
    Cancellation,
    /// We ended it: it never reported itself.
    Silence,
}

impl Unit {
    /// Judges the end of the infrastructure by the run's state, and reports what nobody else will; gives the
    /// cause of the end.
    pub(super) async fn report(
        &self,
        outcome: &Outcome,
        ending: Ending,
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        log: &RunLog,
    ) -> EndCause {
        let cause = match ending {
            Ending::ItsOwn => EndCause::of(outcome),
            Ending::CancelledBeforeItRan | Ending::Cancellation => EndCause::Cancelled,
            Ending::Silence => EndCause::Stuck,
        };
        let Some(mut run) = self.read_run().await else { return cause };
        let claim = Claim {
            proposals: &attempt.proposals,
            infrastructure_pid: &infrastructure.pid,
            report_exit_state: attempt.treatment.report_exit_state,
            kind: self.shared.launcher.kind(),
        };
        loop {
            let judged = verdict(outcome, &run, claim);
            let (cause, told) = self.tell(judged, &run, (cause, ending), infrastructure, attempt, log).await;
            if told != Told::Outdated {
                return cause;
            }
            // Somebody has changed the run since we looked: cancelled it, for example.
            match self.read_run().await {
                Some(changed) if changed.state != run.state => run = changed,
                _ => return cause,
            }
        }
    }

    /// Tells the server what a verdict says.
    async fn tell(
        &self,
        judged: Verdict,
        run: &FlowRun,
        (cause, ending): (EndCause, Ending),
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        log: &RunLog,
    ) -> (EndCause, Told) {
        match judged {
            Verdict::Settled => (cause, Told::Nothing),
            Verdict::Completed => (cause, self.set_completed(log).await),
            Verdict::Cancelled => {
                self.set_cancelled(cancellation(ending), log).await;
                self.run_hook(Hook::Cancelled, ending, infrastructure, attempt, log).await;
                (EndCause::Cancelled, Told::Accepted)
            }
            Verdict::Crashed { message, advice } => {
                let tail = self.log_tail(infrastructure, attempt, log).await;
                let message = match (ending, exit::clue(&tail)) {
                    (Ending::Silence, _) => silence(attempt),
                    (_, Some(clue)) => format!("{message} {clue}"),
                    (_, None) => message,
                };
                let cause = if cause == EndCause::Exited { EndCause::Unreported } else { cause };
                self.make_retriable(run).await;
                if self.try_again(run, &message, attempt, infrastructure, log).await {
                    return (cause, Told::Accepted);
                }
                let told = self.set_crashed(&message, log).await;
                if told == Told::Accepted {
                    if let Some(advice) = advice {
                        log.info(advice);
                    }
                    self.run_hook(Hook::Crashed, ending, infrastructure, attempt, log).await;
                }
                (cause, told)
            }
        }
    }

    /// The last words of a process that died, in the log of its run and as they came.
    pub(super) async fn log_tail(
        &self,
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        log: &RunLog,
    ) -> Vec<String> {
        let lines = self.shared.launcher.tail(infrastructure, TAIL_LINES).await;
        if !lines.is_empty() && !attempt.treatment.log_output {
            let secrets = self.shared.launcher.secrets(infrastructure, attempt).await;
            let text = lines.iter().map(|line| line.chars().take(TAIL_WIDTH).collect::<String>());
            let text = redact(&text.collect::<Vec<_>>().join("\n"), &secrets);
            log.info(&format!("The last output of '{}':\n{text}", infrastructure.name));
        }
        lines
    }

    /// Starts a crashed run again, if its job wants that and its tries are not used up. How many there were
    /// is a label of the run: it outlives workers and infrastructure.
    async fn try_again(
        &self,
        run: &FlowRun,
        message: &str,
        attempt: &Attempt,
        infrastructure: &Infrastructure,
        log: &RunLog,
    ) -> bool {
        let treatment = &attempt.treatment;
        let used = run.labels.get(RETRIES_LABEL).and_then(Value::as_u64).unwrap_or(0);
        if used >= u64::from(treatment.crash_retries) {
            return false;
        }
        let labels = Map::from_iter([(RETRIES_LABEL.to_owned(), Value::from(used + 1))]);
        if self.persist(|| self.shared.client.set_flow_run_labels(run.id, &labels)).await.is_none() {
            return false;
        }
        let doublings = u32::try_from(used).unwrap_or(u32::MAX).min(16);
        let delay =
            treatment.crash_retry_delay_seconds.saturating_mul(1 << doublings).min(LONGEST_RETRY_DELAY);
        let delay = SignedDuration::from_secs(i64::try_from(delay).unwrap_or(0));
        let mut state = NewState::new(StateType::Scheduled)
            .named("AwaitingRetry")
            .scheduled_at(Timestamp::now().saturating_add(delay).unwrap_or(Timestamp::MAX))
            .with_message(storable(&format!(
                "{message} Starting again in {} s: retry {} of {}.",
                delay.as_secs(),
                used + 1,
                treatment.crash_retries
            )));
        // Whoever else sees this end proposes the same.
        state.state_details.transition_id =
            Some(Uuid::new_v5(&Uuid::NAMESPACE_URL, infrastructure.pid.as_bytes()));
        let answer = self.persist(|| self.shared.client.set_flow_run_state(run.id, &state, false)).await;
        let accepted = matches!(answer, Some(Answer::Accept(_)));
        if accepted {
            log.warn(state.message.as_deref().unwrap_or_default());
        }
        accepted
    }

    /// Runs the image's own hook for a process that died: it could not run it itself.
    async fn run_hook(
        &self,
        hook: Hook,
        ending: Ending,
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        log: &RunLog,
    ) {
        if ending == Ending::CancelledBeforeItRan {
            return;
        }
        let id = self.run.id.to_string();
        let command = ["prefect", "flow-run", "hook", hook.word(), &id];
        let launcher = &self.shared.launcher;
        let companion = match launcher.companion(infrastructure, &command).await {
            Ok(Some(companion)) => companion,
            Ok(None) => return,
            Err(error) => {
                log.error(&format!("The hook of the flow was not started: {}", chain(&error)));
                return;
            }
        };
        let waited = tokio::select! {
            waited = tokio::time::timeout(HOOK_DEADLINE, launcher.wait(&companion, None)) => waited,
            () = self.shutdown.leaves_runs() => return,
        };
        match waited {
            Ok(outcome) if outcome.code() == Some(0) => {}
            Ok(_) => {
                log.error(&format!("The hook of the flow failed in '{}'", companion.name));
                self.log_tail(&companion, attempt, log).await;
            }
            Err(_) => {
                log.error(&format!("The hook of the flow took longer than {} s", HOOK_DEADLINE.as_secs()));
            }
        }
        if let Err(error) = launcher.discard(&companion).await {
            log.warn(&format!("'{}' was not removed: {}", companion.name, chain(&error)));
        }
    }

    async fn set_completed(&self, log: &RunLog) -> Told {
        let state = NewState::new(StateType::Completed).with_message("The program ended with status code 0.");
        let answer = self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await;
        let told = Told::by(answer.as_ref());
        if told == Told::Accepted {
            log.info(&format!("Reported flow run '{}' as completed", self.run.id));
        }
        told
    }

    /// A crash in the middle of an in-process retry leaves a mark that keeps the UI's retry from ever being
    /// picked up; nobody else removes it (contract §5.7).
    async fn make_retriable(&self, run: &FlowRun) {
        if run.empirical_policy.retry_type.is_none() {
            return;
        }
        let policy = FlowRunPolicy { retry_type: None, ..run.empirical_policy.clone() };
        let update = FlowRunUpdate { empirical_policy: Some(policy), ..Default::default() };
        self.persist(|| self.shared.client.update_flow_run(self.run.id, &update)).await;
    }

    pub(super) async fn set_crashed(&self, message: &str, log: &RunLog) -> Told {
        let message = storable(message);
        let state = NewState::new(StateType::Crashed).with_message(message.clone());
        let answer = self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await;
        let told = Told::by(answer.as_ref());
        if told == Told::Accepted {
            log.info(&format!("Reported flow run '{}' as crashed: {message}", self.run.id));
        }
        told
    }

    pub(super) async fn set_cancelled(&self, message: &str, log: &RunLog) {
        let state = NewState::new(StateType::Cancelled).with_message(message);
        if self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, true)).await.is_some() {
            log.info(message);
        }
    }

    /// Gives a claimed run that has not started back to the queue, for its own time if that is to come.
    pub(super) async fn hand_back(&self, proposals: &[Uuid], why: &str, log: &RunLog) {
        // A run that ended meanwhile would start anew: the server takes SCHEDULED after a final state.
        let Some(run) = self.read_run().await else { return };
        if run.state_type == Some(StateType::Cancelling) {
            self.set_cancelled(NOTHING_THERE, log).await;
            return;
        }
        if !untouched(&run, proposals) {
            return;
        }
        let now = Timestamp::now();
        let due = self.run.next_scheduled_start_time.map_or(now, |due| due.max(now));
        let state = NewState::new(StateType::Scheduled)
            .scheduled_at(due)
            .with_message(format!("Handed back by worker '{}': {why}.", self.shared.worker));
        if let Some(Answer::Accept(_)) =
            self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await
        {
            log.info(&format!("Handed flow run '{}' back: {why}", self.run.id));
        }
    }

    /// The run as it is now; `None` if it was deleted.
    pub(super) async fn read_run(&self) -> Option<FlowRun> {
        self.persist(|| self.shared.client.read_flow_run(self.run.id)).await
    }

    /// Makes a call until it succeeds or cannot: an outage of the server only delays what it must be told.
    /// `None` if the run is gone or the server finds fault with the call.
    pub(super) async fn persist<T, F>(&self, call: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, prefect_client::Error>>,
    {
        let mut pause = Duration::from_secs(1);
        let mut waiting = None;
        loop {
            let error = match call().await {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            if self.is_gone(&error).await {
                tracing::debug!(flow_run.id = %self.run.id, "the run was deleted");
                return None;
            }
            // Credentials and proxies can be mended while we run.
            if !error.is_transient() && !matches!(error.status(), Some(401 | 403 | 404)) {
                tracing::error!(flow_run.id = %self.run.id, error = chain(&error), "the server refused");
                return None;
            }
            tracing::warn!(flow_run.id = %self.run.id, error = chain(&error), "the server was not told, trying again");
            self.shared.metrics.api_error(&error);
            waiting.get_or_insert_with(|| self.shared.board.board().report_waits());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Whether an error says that a record does not exist. A proxy whose server is away says 404 too.
    pub(super) async fn is_gone(&self, error: &prefect_client::Error) -> bool {
        error.is_not_found() && self.shared.client.health().await.is_ok()
    }
}

/// A hook that the flow's own program runs when its process could not.
#[derive(Debug, Clone, Copy)]
enum Hook {
    Crashed,
    Cancelled,
}

impl Hook {
    const fn word(self) -> &'static str {
        match self {
            Self::Crashed => "crashed",
            Self::Cancelled => "cancelled",
        }
    }
}

fn cancellation(ending: Ending) -> &'static str {
    match ending {
        Ending::ItsOwn | Ending::Silence => "Flow run cancelled by worker: its infrastructure has ended.",
        Ending::CancelledBeforeItRan => "Flow run cancelled by worker while pending.",
        Ending::Cancellation => "Flow run cancelled by worker: it did not end itself in time.",
    }
}

fn silence(attempt: &Attempt) -> String {
    let seconds = attempt.treatment.start_timeout_seconds.unwrap_or_default();
    format!(
        "Flow run infrastructure was started, but the run did not report itself within {seconds} s \
         (start_timeout_seconds); the worker has ended it."
    )
}

/// A text that the server's database takes.
fn storable(message: &str) -> String {
    message.chars().filter(|&c| c != '\0').take(MESSAGE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_hold_no_nul() {
        assert_eq!(storable("a\0b"), "ab");
        assert_eq!(storable(&"é".repeat(MESSAGE_LIMIT + 1)).chars().count(), MESSAGE_LIMIT);
    }
}
