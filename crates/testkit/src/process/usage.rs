//! What processes used, as the kernel counts it.

use std::time::Duration;

/// Clock ticks per second in `/proc`: fixed at 100 in Linux's interface to programs.
const TICKS_PER_SECOND: u32 = 100;

/// The kernel's flag of a process that is still a copy of its parent and has begun no program of its own.
const FORKED_NO_EXEC: u64 = 0x40;

/// What a process used so far, from `/proc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Resident memory now, in bytes.
    pub rss: u64,
    /// Peak of the resident memory, in bytes.
    pub rss_peak: u64,
}

/// Usage of any process by itself, or `None` when it is gone or not ours to read.
pub fn usage_of(pid: u32) -> Option<Usage> {
    let stat = Stat::read(pid)?;
    let (rss, rss_peak) = memory(pid)?;
    Some(Usage { cpu: stat.own, rss, rss_peak })
}

/// Usage of a process and of all its living descendants together, with the CPU time of those that were waited for; `None`
/// when it is gone. The peak is the sum of their peaks. Copies that have begun no program of their own count for
/// nothing: their memory is their parent's, and so is what they do with it.
pub fn usage_of_tree(pid: u32) -> Option<Usage> {
    let mut tree = of_one_in_tree(pid)?;
    // A thread that ends meanwhile takes its list along; another thread has its children then.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for thread in threads {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        for child in children.filter_map(usage_of_tree) {
            tree.cpu += child.cpu;
            tree.rss += child.rss;
            tree.rss_peak += child.rss_peak;
        }
    }
    Some(tree)
}

fn of_one_in_tree(pid: u32) -> Option<Usage> {
    let stat = Stat::read(pid)?;
    if stat.is_copy {
        return Some(Usage::default());
    }
    let (rss, rss_peak) = memory(pid)?;
    Some(Usage { cpu: stat.own + stat.waited_for, rss, rss_peak })
}

/// Resident memory now and at its peak, in bytes.
fn memory(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

/// Fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    is_copy: bool,
    /// CPU time of the process itself.
    own: Duration,
    /// CPU time of its children that it has waited for, and of theirs.
    waited_for: Duration,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The command stands in parentheses and may hold blanks; what follows is regular: state is field 3 of proc(5).
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = |field: usize| Some(Duration::from_secs(number(field)?) / TICKS_PER_SECOND);
        Some(Self {
            is_copy: number(9)? & FORKED_NO_EXEC != 0,
            own: ticks(14)? + ticks(15)?,
            waited_for: ticks(16)? + ticks(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_be_named_like_the_fields_behind_it() {
        let text = "7 (a) 1 (b) S 1 7 7 0 -1 4194368 129 0 0 0 150 25 300 1 20 0 1 0 5 6 7";
        let millis = Duration::from_millis;
        let stat = Stat { is_copy: true, own: millis(1_750), waited_for: millis(3_010) };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1 7"), None);
    }
}
