//! CPU time as the kernel counts it for this process: its own, and that of the children that it waited for, grandchildren
//! included. Measurements are made one after another, so that a difference is one child's.

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// CPU seconds of this process so far.
pub(crate) fn of_this_process() -> Result<f64> {
    seconds(UsageWho::RUSAGE_SELF)
}

/// CPU seconds of all children that ended so far.
pub(super) fn of_children() -> Result<f64> {
    seconds(UsageWho::RUSAGE_CHILDREN)
}

#[expect(clippy::cast_precision_loss, reason = "a CPU time is far below 2^52 microseconds")]
fn seconds(of: UsageWho) -> Result<f64> {
    let usage = getrusage(of).context("failed to ask for CPU time")?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}
