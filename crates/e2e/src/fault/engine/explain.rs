//! What may differ from the undisturbed run, and why. It is not our engine's doing, and nothing else is in here.

use crate::compare::{Difference, Explanation};

/// All of it.
pub(super) const TABLE: &[Explanation] = &[Explanation {
    // It keeps them in memory until it writes them down, and leaves out a predecessor that is five minutes old.
    difference: "of its own events about states of flow runs a server forgets some when it is killed, and those of \
                 slow runs name no predecessor",
    covers: is_of_a_flow_runs_state,
}];

fn is_of_a_flow_runs_state(found: &Difference) -> bool {
    const STATES: [&str; 7] =
        ["Scheduled", "Pending", "Running", "AwaitingRetry", "Retrying", "Completed", "Failed"];
    let line = found.reference.as_str().or(found.ours.as_str()).unwrap_or_default();
    let is_event = found.path.rsplit('.').next() == Some("events");
    is_event && STATES.iter().any(|state| line.starts_with(&format!("prefect.flow-run.{state} of ")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_the_servers_own_events_may_be_others() {
        let difference = |path: &str, line: &str| Difference {
            case: "run 0".to_owned(),
            path: path.to_owned(),
            reference: json!(line),
            ours: Value::Null,
        };
        let is_explained = |found: &Difference| TABLE.iter().any(|it| (it.covers)(found));
        assert!(is_explained(&difference("events", "prefect.flow-run.Running of prefect.flow-run.run")));
        assert!(!is_explained(&difference("events", "prefect.flow-run.heartbeat of prefect.flow-run.run")));
        assert!(!is_explained(&difference("logs", "prefect.flow-run.Running of prefect.flow-run.run")));
        let of_task =
            difference("task runs.step 1.events", "prefect.task-run.Running of prefect.task-run.step 1");
        assert!(!is_explained(&of_task));
    }
}
