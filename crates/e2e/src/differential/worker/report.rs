//! What came out.

use serde::Serialize;
use serde_json::{Value, json};

use super::drive::{Outcome, Outcomes};
use super::explain;
use crate::compare::{Findings, differences};

/// The comparison of both workers.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Cases that went through both.
    pub cases: usize,
    /// Cases whose container both launched.
    pub launched: usize,
    /// Cases that both refused.
    pub refused: usize,
    /// The differences.
    #[serde(flatten)]
    pub findings: Findings,
    /// What the workers say where at least one refuses.
    pub messages: Vec<Messages>,
}

/// Why a run was not launched.
#[derive(Debug, Serialize)]
pub struct Messages {
    /// The case.
    pub case: String,
    /// The words of Python's worker; null if it launched.
    pub python: Option<String>,
    /// Ours.
    pub ours: Option<String>,
}

impl Report {
    pub(super) fn new(python: Outcomes, mut ours: Outcomes, complete: bool) -> Self {
        let mut report = Self {
            cases: 0,
            launched: 0,
            refused: 0,
            findings: Findings::new(explain::TABLE),
            messages: Vec::new(),
        };
        for (case, python) in python {
            if let Some(ours) = ours.remove(&case) {
                report.add(&case, &python, &ours);
            }
        }
        report.findings.close(complete);
        report
    }

    fn add(&mut self, case: &str, python: &Outcome, ours: &Outcome) {
        self.cases += 1;
        match (python, ours) {
            (Outcome::Launched(_), Outcome::Launched(_)) => self.launched += 1,
            (Outcome::Refused { .. }, Outcome::Refused { .. }) => self.refused += 1,
            _ => {}
        }
        let message = |outcome: &Outcome| match outcome {
            Outcome::Launched(_) => None,
            Outcome::Refused { message, .. } => Some(message.clone()),
        };
        let (left, right) = (message(python), message(ours));
        if left.is_some() || right.is_some() {
            self.messages.push(Messages { case: case.to_owned(), python: left, ours: right });
        }
        self.findings.add(differences(case, &facts(python, ours), &facts(ours, python)));
    }

    /// Whether nothing is left to explain, and no explanation is stale.
    pub fn passed(&self) -> bool {
        self.findings.passed()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let said = |case: &str| {
            let Messages { python, ours, .. } =
                self.messages.iter().find(|messages| messages.case == case)?;
            Some(format!("  python says: {python:?}\n  ours says:   {ours:?}"))
        };
        format!(
            "{} cases: both launched {}, both refused {}\n{}",
            self.cases,
            self.launched,
            self.refused,
            self.findings.text(said)
        )
    }
}

/// What is compared of an outcome: the container, or how the run ended. If only one of them launched, that alone
/// is the difference.
fn facts(outcome: &Outcome, other: &Outcome) -> Value {
    match (outcome, other) {
        (Outcome::Launched(document), Outcome::Launched(_)) => document.clone(),
        (Outcome::Launched(_), Outcome::Refused { .. }) => json!({"outcome": "launched"}),
        (Outcome::Refused { .. }, Outcome::Launched(_)) => json!({"outcome": "refused"}),
        (Outcome::Refused { state, left, .. }, Outcome::Refused { .. }) => {
            json!({"state": state, "containers left": left})
        }
    }
}
