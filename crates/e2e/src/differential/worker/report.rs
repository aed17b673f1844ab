//! What came out.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use super::compare::{Difference, differences};
use super::drive::{Outcome, Outcomes};
use super::explain;

/// The comparison of both workers.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Cases that went through both.
    pub cases: usize,
    /// Cases whose container both launched.
    pub launched: usize,
    /// Cases that both refused.
    pub refused: usize,
    /// Places where the two differ.
    pub differences: usize,
    /// Those of them that we stand by.
    pub explained: usize,
    /// The others.
    pub unexplained: Vec<Difference>,
    /// The differences that we stand by, by their reason.
    pub explanations: Vec<Explained>,
    /// Explanations that explained nothing, if all cases ran.
    pub unused: Vec<&'static str>,
    /// What the workers say where at least one refuses.
    pub messages: Vec<Messages>,
}

/// Differences with one explanation.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// The difference, in the words of `docs/compatibility.md`.
    pub explanation: &'static str,
    /// Where.
    pub differences: Vec<Difference>,
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
            differences: 0,
            explained: 0,
            unexplained: Vec::new(),
            explanations: explain::TABLE
                .iter()
                .map(|explanation| Explained { explanation: explanation.difference, differences: Vec::new() })
                .collect(),
            unused: Vec::new(),
            messages: Vec::new(),
        };
        for (case, python) in python {
            if let Some(ours) = ours.remove(&case) {
                report.add(&case, &python, &ours);
            }
        }
        if complete {
            let unused = report.explanations.iter().filter(|explained| explained.differences.is_empty());
            report.unused = unused.map(|explained| explained.explanation).collect();
        }
        report.explanations.retain(|explained| !explained.differences.is_empty());
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
        for difference in differences(case, &facts(python, ours), &facts(ours, python)) {
            self.differences += 1;
            let explanation = explain::TABLE.iter().position(|explanation| (explanation.covers)(&difference));
            match explanation.and_then(|index| self.explanations.get_mut(index)) {
                Some(explained) => {
                    self.explained += 1;
                    explained.differences.push(difference);
                }
                None => self.unexplained.push(difference),
            }
        }
    }

    /// Whether nothing is left to explain, and no explanation is stale.
    pub fn passed(&self) -> bool {
        self.unexplained.is_empty() && self.unused.is_empty()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} cases: both launched {}, both refused {}\n{} differences, {} explained\n",
            self.cases, self.launched, self.refused, self.differences, self.explained
        );
        // Writing to a String cannot fail.
        let mut line = |line: String| writeln!(text, "{line}").unwrap_or_default();
        for Explained { explanation, differences } in &self.explanations {
            line(format!("  {:>3} x {explanation}", differences.len()));
        }
        for Difference { case, path, python, ours } in &self.unexplained {
            line(format!("unexplained: {case}: {path}\n  python: {python}\n  ours:   {ours}"));
            let said = self.messages.iter().find(|messages| messages.case == *case);
            if let Some(Messages { python, ours, .. }) = said {
                line(format!("  python says: {python:?}\n  ours says:   {ours:?}"));
            }
        }
        for unused in &self.unused {
            line(format!("explains nothing any more: {unused}"));
        }
        text
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
