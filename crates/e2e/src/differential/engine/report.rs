//! What came out.

use serde::Serialize;
use serde_json::Value;

use super::explain;
use crate::compare::{Findings, differences_by_item, leaves};

/// The comparison of both engines.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Scenarios that both engines played.
    pub scenarios: usize,
    /// Values that the server holds of Python's runs: what was compared.
    pub records: usize,
    /// The differences.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { scenarios: 0, records: 0, findings: Findings::new(explain::TABLE) }
    }

    pub(super) fn add(&mut self, scenario: &str, python: &Value, ours: &Value) {
        self.scenarios += 1;
        self.records += leaves(python);
        self.findings.add(differences_by_item(scenario, python, ours));
    }

    pub(super) fn close(&mut self, complete: bool) {
        self.findings.close(complete);
    }

    /// Whether nothing is left to explain, and no explanation is stale.
    pub fn passed(&self) -> bool {
        self.findings.passed()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        format!(
            "{} scenarios, {} values compared\n{}",
            self.scenarios,
            self.records,
            self.findings.text(|_| None)
        )
    }
}
