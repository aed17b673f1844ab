//! What the bodies of a run's tasks have witnessed: a line for each time that one was executed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

use super::plan::WAY;

const LOOK: Duration = Duration::from_millis(100);

/// The file of one run.
#[derive(Clone, Debug)]
pub(super) struct Witness(PathBuf);

impl Witness {
    pub(super) const fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// How often each body was executed in which attempt.
    pub(super) fn executions(&self) -> BTreeMap<String, usize> {
        let mut executions = BTreeMap::new();
        for line in self.text().lines() {
            *executions.entry(line.to_owned()).or_default() += 1;
        }
        executions
    }

    fn count(&self) -> u64 {
        self.text().lines().count() as u64
    }

    fn text(&self) -> String {
        // Before the first body there is none.
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }
}

/// Waits until these runs together have come so far on their way, which is `length` executions for each.
pub(super) async fn reached(witnesses: &[Witness], after: u64, length: u64) {
    let wanted = length * witnesses.len() as u64 * after / WAY;
    while witnesses.iter().map(Witness::count).sum::<u64>() < wanted {
        sleep(LOOK).await;
    }
}
