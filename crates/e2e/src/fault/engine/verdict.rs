//! What is wrong with a run, from what was seen of it and what the server holds of it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::drive::Undisturbed;
use super::explain;
use super::play::Played;
use crate::compare::{Difference, Findings, differences_by_item};

/// What is wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Its process never ended, or the server does not know its end.
    Stuck,
    /// Its process ended with another exit code than 0.
    Failed,
    /// A body was not executed, or the server lacks something.
    Lost,
    /// A body was executed twice in one attempt, or the server holds something that it does not hold of the undisturbed
    /// run.
    Doubled,
    /// The server holds something else.
    Different,
}

/// All that is known of a run in the end.
pub(super) struct Evidence<'a> {
    pub(super) number: usize,
    pub(super) played: Played,
    pub(super) record: Value,
    pub(super) undisturbed: &'a Undisturbed,
}

impl Evidence<'_> {
    /// Where its record differs from the undisturbed one.
    pub(super) fn findings(&self) -> Findings {
        let case = format!("run {}", self.number);
        let mut findings = Findings::new(explain::TABLE);
        findings.add(differences_by_item(&case, &self.undisturbed.record, &self.record));
        findings.close(false);
        findings
    }

    /// Bodies that were not executed as often as in the undisturbed run, and how often they were.
    pub(super) fn odd_executions(&self) -> BTreeMap<String, usize> {
        let wanted = &self.undisturbed.executions;
        let executed = &self.played.executions;
        let bodies = wanted.keys().chain(executed.keys());
        let counted = bodies.map(|body| (body, executed.get(body).copied().unwrap_or_default()));
        let odd = counted.filter(|(body, count)| wanted.get(*body) != Some(count));
        odd.map(|(body, count)| (body.clone(), count)).collect()
    }

    /// What is wrong, where these differences have no explanation.
    pub(super) fn faults(&self, differences: &[Difference]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut found = |fault, is_so: bool| {
            if is_so {
                faults.push(fault);
            }
        };
        let ended = ["Completed", "Failed", "Crashed", "Cancelled"].map(Value::from);
        let is_over = ended.contains(&self.record["flow run"]["state_name"]);
        found(Fault::Stuck, self.played.exit.is_none() || !is_over);
        found(Fault::Failed, self.played.exit.is_some_and(|exit| !exit.success()));
        let (odd, is_null) = (self.odd_executions(), Value::is_null);
        let is_lost = odd.values().any(|count| *count == 0) || differences.iter().any(|it| is_null(&it.ours));
        found(Fault::Lost, is_lost);
        let is_doubled =
            odd.values().any(|count| *count > 0) || differences.iter().any(|it| is_null(&it.reference));
        found(Fault::Doubled, is_doubled);
        let is_other = |found: &Difference| !found.ours.is_null() && !found.reference.is_null();
        found(Fault::Different, differences.iter().any(is_other));
        faults
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use prefect_api::id::FlowRunId;
    use serde_json::json;

    use super::*;

    fn faults(record: Value, executions: &[(&str, usize)], exit: Option<i32>) -> Vec<Fault> {
        let executed = |bodies: &[(&str, usize)]| -> BTreeMap<String, usize> {
            bodies.iter().map(|(body, count)| ((*body).to_owned(), *count)).collect()
        };
        let undisturbed = Undisturbed {
            record: json!({"flow run": {"state_name": "Completed"}, "logs": ["a", "b"]}),
            executions: executed(&[("step 1", 1), ("step 2", 1)]),
        };
        let played = Played {
            run: FlowRunId::generate(),
            exit: exit.map(|code| ExitStatus::from_raw(code << 8)),
            executions: executed(executions),
            rss_peak: 0,
            strikes: Vec::new(),
            said: String::new(),
        };
        let evidence = Evidence { number: 0, played, record, undisturbed: &undisturbed };
        let findings = evidence.findings();
        evidence.faults(&findings.unexplained)
    }

    #[test]
    fn only_what_the_undisturbed_run_left_is_right() {
        let done = [("step 1", 1), ("step 2", 1)];
        let record = |state: &str, logs: &[&str]| json!({"flow run": {"state_name": state}, "logs": logs});
        let right = record("Completed", &["a", "b"]);
        assert_eq!(faults(right.clone(), &done, Some(0)), []);
        assert_eq!(faults(right.clone(), &done, Some(1)), [Fault::Failed]);
        assert_eq!(faults(right.clone(), &done, None), [Fault::Stuck]);
        assert_eq!(faults(right.clone(), &[("step 1", 1)], Some(0)), [Fault::Lost]);
        assert_eq!(faults(right, &[("step 1", 2), ("step 2", 1)], Some(0)), [Fault::Doubled]);
        assert_eq!(faults(record("Completed", &["a"]), &done, Some(0)), [Fault::Lost]);
        assert_eq!(faults(record("Completed", &["a", "b", "b"]), &done, Some(0)), [Fault::Doubled]);
        assert_eq!(faults(record("Crashed", &["a", "b"]), &done, Some(0)), [Fault::Different]);
        assert_eq!(faults(record("Running", &["a", "b"]), &done, Some(0)), [Fault::Stuck, Fault::Different]);
    }
}
