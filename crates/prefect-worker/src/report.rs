//! What the server must be told about a run, through every outage.

use std::time::Duration;

use jiff::Timestamp;
use prefect_api::flow_run::{FlowRun, FlowRunPolicy, FlowRunUpdate};
use prefect_api::state::{Answer, NewState, StateType};

use crate::error::chain;
use crate::exit::{Claim, Verdict, untouched, verdict};
use crate::launcher::{Attempt, Infrastructure, Outcome};
use crate::redact::redact;
use crate::run_log::RunLog;
use crate::submission::Unit;

/// The longest pause between two tries of anything.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(30);
/// How many of the last lines of output are shown, and how much of each.
const TAIL_LINES: usize = 50;
const TAIL_WIDTH: usize = 1000;
/// Texts of engines and registries have no bounds of their own; messages of states have.
const MESSAGE_LIMIT: usize = 10_000;

impl Unit {
    /// Judges the end of the infrastructure by the run's state, and reports what nobody else will.
    pub(crate) async fn report(
        &self,
        outcome: &Outcome,
        claim: Claim<'_>,
        infrastructure: &Infrastructure,
        attempt: &Attempt,
        log: &RunLog,
    ) {
        let Some(run) = self.read_run().await else { return };
        match verdict(outcome, &run, claim) {
            Verdict::Settled => {}
            Verdict::Cancelled => {
                self.set_cancelled("Flow run cancelled by worker: its infrastructure has ended.", log).await;
            }
            Verdict::Crashed { message, advice } => {
                self.make_retriable(&run).await;
                self.log_tail(infrastructure, attempt, log).await;
                self.set_crashed(&message, log).await;
                if let Some(advice) = advice {
                    log.info(advice);
                }
            }
        }
    }

    /// The last words of a process that died, in the log of its run.
    pub(crate) async fn log_tail(&self, infrastructure: &Infrastructure, attempt: &Attempt, log: &RunLog) {
        let lines = self.shared.launcher.tail(infrastructure, TAIL_LINES).await;
        if lines.is_empty() {
            return;
        }
        let secrets = self.shared.launcher.secrets(infrastructure, attempt).await;
        let text = lines.iter().map(|line| line.chars().take(TAIL_WIDTH).collect::<String>());
        let text = redact(&text.collect::<Vec<_>>().join("\n"), &secrets);
        log.info(&format!("The last output of '{}':\n{text}", infrastructure.name));
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

    pub(crate) async fn set_crashed(&self, message: &str, log: &RunLog) {
        let message = storable(message);
        let state = NewState::new(StateType::Crashed).with_message(message.clone());
        let answer = self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await;
        if let Some(Answer::Accept(_)) = answer {
            log.info(&format!("Reported flow run '{}' as crashed: {message}", self.run.id));
        }
    }

    pub(crate) async fn set_cancelled(&self, message: &str, log: &RunLog) {
        let state = NewState::new(StateType::Cancelled).with_message(message);
        if self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, true)).await.is_some() {
            log.info(message);
        }
    }

    /// Gives a claimed run that has not started back to the queue, for its own time if that is to come.
    pub(crate) async fn hand_back(&self, proposals: &[NewState], log: &RunLog) {
        // A run that ended meanwhile would start anew: the server takes SCHEDULED after a final state.
        if !self.read_run().await.is_some_and(|run| untouched(&run, proposals)) {
            return;
        }
        let now = Timestamp::now();
        let due = self.run.next_scheduled_start_time.map_or(now, |due| due.max(now));
        let state = NewState::new(StateType::Scheduled)
            .scheduled_at(due)
            .with_message(format!("Handed back by worker '{}', which is stopping.", self.shared.worker));
        if let Some(Answer::Accept(_)) =
            self.persist(|| self.shared.client.set_flow_run_state(self.run.id, &state, false)).await
        {
            log.info(&format!(
                "Handed flow run '{}' back: worker '{}' is stopping",
                self.run.id, self.shared.worker
            ));
        }
    }

    /// The run as it is now; `None` if it was deleted.
    pub(crate) async fn read_run(&self) -> Option<FlowRun> {
        self.persist(|| self.shared.client.read_flow_run(self.run.id)).await
    }

    /// Makes a call until it succeeds or cannot: an outage of the server only delays what it must be told.
    /// `None` if the run is gone or the server finds fault with the call.
    pub(crate) async fn persist<T, F>(&self, call: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, prefect_client::Error>>,
    {
        let mut pause = Duration::from_secs(1);
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
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Whether an error says that a record does not exist. A proxy whose server is away says 404 too.
    pub(crate) async fn is_gone(&self, error: &prefect_client::Error) -> bool {
        error.is_not_found() && self.shared.client.health().await.is_ok()
    }
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
