//! One progress over all datablocks of a dataset.

use archiver::ProgressUpdate;
use prefect_flow::Progress;

/// A progress through several stages. It counts bytes, and one unit more for each file, so that empty files
/// count too.
#[derive(Debug)]
pub(crate) struct Gauge {
    bar: Progress,
    total: u64,
    done: u64,
}

impl Gauge {
    /// A gauge at 0 of `total` units.
    pub(crate) fn new(bar: Progress, total: u64) -> Self {
        Self { bar, total, done: 0 }
    }

    /// The progress of the next stage, which is worth `units`.
    pub(crate) fn stage(&self, units: u64) -> archiver::Progress {
        let (bar, total, done) = (self.bar.clone(), self.total, self.done);
        archiver::Progress::new(move |update| bar.set_of(done + share(update, units), total))
    }

    /// Ends a stage that was worth `units`.
    pub(crate) fn advance(&mut self, units: u64) {
        self.done += units;
        self.bar.set_of(self.done, self.total);
    }
}

/// What `update` is worth of a stage of `units`: stages may count other bytes than the gauge (a tar is a little
/// larger than its files).
fn share(update: ProgressUpdate, units: u64) -> u64 {
    let done = u128::from(update.bytes) + u128::from(update.files);
    let total = u128::from(update.total_bytes) + u128::from(update.total_files);
    let share = (u128::from(units) * done).checked_div(total).unwrap_or(0);
    u64::try_from(share).unwrap_or(u64::MAX).min(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_worth_its_units_whatever_it_counts() {
        let update = |bytes, total_bytes, files, total_files| ProgressUpdate {
            bytes,
            total_bytes,
            files,
            total_files,
        };
        assert_eq!(share(update(0, 100, 0, 1), 50), 0);
        assert_eq!(share(update(100, 100, 1, 1), 50), 50);
        assert_eq!(share(update(0, 0, 2, 4), 10), 5);
        assert_eq!(share(update(0, 0, 0, 0), 10), 0);
        assert_eq!(share(update(u64::MAX, u64::MAX, 1, 1), u64::MAX), u64::MAX);
        assert_eq!(share(update(200, 100, 1, 1), 50), 50);
    }
}
