//! The account of the differences: those that we stand by, each with its reason, and the others.

use std::fmt::Write as _;

use serde::Serialize;

use super::Difference;

/// A difference that is meant.
#[derive(Debug)]
pub struct Explanation {
    /// What differs. In the words of `docs/compatibility.md` where Python is compared with.
    pub difference: &'static str,
    /// Whether this is such a difference.
    pub covers: fn(&Difference) -> bool,
}

/// Differences with one explanation.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// What differs.
    pub explanation: &'static str,
    /// Where.
    pub differences: Vec<Difference>,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Places where the two differ.
    pub differences: usize,
    /// Those of them that we stand by.
    pub explained: usize,
    /// The others.
    pub unexplained: Vec<Difference>,
    /// The differences that we stand by, by their reason.
    pub explanations: Vec<Explained>,
    /// Explanations that explained nothing, if enough was compared to say so.
    pub unused: Vec<&'static str>,
    #[serde(skip)]
    table: &'static [Explanation],
}

impl Findings {
    /// Nothing yet.
    pub(crate) fn new(table: &'static [Explanation]) -> Self {
        let explained =
            |row: &Explanation| Explained { explanation: row.difference, differences: Vec::new() };
        Self {
            differences: 0,
            explained: 0,
            unexplained: Vec::new(),
            explanations: table.iter().map(explained).collect(),
            unused: Vec::new(),
            table,
        }
    }

    pub(crate) fn add(&mut self, found: Vec<Difference>) {
        for difference in found {
            self.differences += 1;
            let row = self.table.iter().position(|explanation| (explanation.covers)(&difference));
            match row.and_then(|index| self.explanations.get_mut(index)) {
                Some(explained) => {
                    self.explained += 1;
                    explained.differences.push(difference);
                }
                None => self.unexplained.push(difference),
            }
        }
    }

    /// Nothing more comes. `complete`: every explanation had its chance.
    pub(crate) fn close(&mut self, complete: bool) {
        if complete {
            let unused = self.explanations.iter().filter(|explained| explained.differences.is_empty());
            self.unused = unused.map(|explained| explained.explanation).collect();
        }
        self.explanations.retain(|explained| !explained.differences.is_empty());
    }

    /// Whether nothing is left to explain, and no explanation is stale.
    pub fn passed(&self) -> bool {
        self.unexplained.is_empty() && self.unused.is_empty()
    }

    /// The account for people; `more` is what else there is to say about a case.
    pub(crate) fn text(&self, more: impl Fn(&str) -> Option<String>) -> String {
        let mut text = format!("{} differences, {} explained\n", self.differences, self.explained);
        // Writing to a String cannot fail.
        let mut line = |line: String| writeln!(text, "{line}").unwrap_or_default();
        for Explained { explanation, differences } in &self.explanations {
            line(format!("  {:>3} x {explanation}", differences.len()));
        }
        for Difference { case, path, reference, ours } in &self.unexplained {
            line(format!("unexplained: {case}: {path}\n  reference: {reference}\n  ours:      {ours}"));
            if let Some(more) = more(case) {
                line(more);
            }
        }
        for unused in &self.unused {
            line(format!("explains nothing any more: {unused}"));
        }
        text
    }
}

/// Whether each explanation is a row of `docs/compatibility.md`.
#[cfg(test)]
pub(crate) fn assert_documented(table: &[Explanation]) {
    let document = include_str!("../../../../docs/compatibility.md");
    for Explanation { difference, .. } in table {
        assert!(
            document.contains(&format!("| {difference} |")),
            "no row of compatibility.md is {difference:?}"
        );
    }
}
