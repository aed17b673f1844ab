//! What the control group of a process says about memory, where there is one that has a limit.

use std::path::{Path, PathBuf};

/// The control group that this process, and what it starts, is in.
#[derive(Debug)]
pub(super) struct MemoryGroup {
    path: Option<PathBuf>,
    /// How often it had run out of memory at first.
    kills: Option<u64>,
}

impl MemoryGroup {
    /// Looks at the group of this process.
    pub(super) fn of_self() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let path =
            unified(&groups).map(|path| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
        Self::at(path)
    }

    fn at(path: Option<PathBuf>) -> Self {
        let mut group = Self { path, kills: None };
        group.kills = group.kills();
        group
    }

    /// Whether the kernel has killed something in it for want of memory since we looked first.
    pub(super) fn ran_out(&self) -> bool {
        matches!((self.kills, self.kills()), (Some(before), Some(now)) if now > before)
    }

    /// The most memory that it may have, in bytes.
    pub(super) fn limit(&self) -> Option<u64> {
        self.read("memory.max")?.trim().parse().ok()
    }

    fn kills(&self) -> Option<u64> {
        let events = self.read("memory.events")?;
        events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path.as_ref()?.join(name)).ok()
    }
}

/// The path of the group in the unified hierarchy.
fn unified(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_for_want_of_memory_and_the_limit_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n");
        write("memory.max", "67108864\n");
        let group = MemoryGroup::at(Some(directory.path().to_owned()));
        assert_eq!((group.ran_out(), group.limit()), (false, Some(64 << 20)));
        write("memory.events", "oom 2\noom_kill 2\n");
        write("memory.max", "max\n");
        assert_eq!((group.ran_out(), group.limit()), (true, None));
    }

    #[test]
    fn without_a_group_nothing_is_known() {
        let group = MemoryGroup::at(unified("1:memory:/x\n").map(PathBuf::from));
        assert_eq!((group.ran_out(), group.limit()), (false, None));
        assert_eq!(
            unified("1:memory:/x\n0::/system.slice/worker.service\n"),
            Some("/system.slice/worker.service")
        );
    }
}
