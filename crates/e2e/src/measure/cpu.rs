//! CPU time of child processes: what the kernel has added to this process for children that it waited for,
//! grandchildren included. Measurements are made one after another, so the difference is one child's.

use anyhow::{Context as _, Result};

/// Clock ticks in a second; fixed for user space on Linux.
const TICKS: f64 = 100.0;

/// CPU seconds of all children that ended so far.
pub(super) fn of_children() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("failed to read /proc/self/stat")?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat has an unknown form")?;
    let ticks = |index: usize| -> Result<f64> {
        let field = fields.split_whitespace().nth(index).context("/proc/self/stat is too short")?;
        Ok(field.parse::<f64>()?)
    };
    // cutime and cstime, the fields 16 and 17 of proc(5); the third field is our number 0.
    Ok((ticks(13)? + ticks(14)?) / TICKS)
}
