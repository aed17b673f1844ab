//! `/proc/self/mountinfo`: which file system a path is on.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A file system that is mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Numbers of its device: the same for all mounts of one file system.
    pub(crate) device: String,
    /// `ext4`, `nfs4`, `tmpfs` …
    pub(crate) kind: String,
    /// What is mounted: `/dev/vda1`, `server:/export` …
    pub(crate) source: String,
    /// Where.
    point: PathBuf,
}

/// The mount that a path is on: of those above it the nearest, and of several in one place the last.
pub(super) fn mount_of(table: &str, path: &Path) -> Option<Mount> {
    let above = table.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.point));
    // The last one among equals.
    above.max_by_key(|mount| mount.point.components().count())
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
fn parse(line: &str) -> Option<Mount> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(2);
    let (device, point) = (place.next()?, place.nth(1)?);
    let mut file_system = file_system.split(' ');
    let (kind, source) = (file_system.next()?, file_system.next()?);
    let text = |word: &str| String::from_utf8_lossy(&unescape(word)).into_owned();
    Some(Mount {
        device: device.to_owned(),
        kind: text(kind),
        source: text(source),
        point: PathBuf::from(std::ffi::OsString::from_vec(unescape(point))),
    })
}

/// Spaces and the like stand there in octal: `\040`.
fn unescape(word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 24 0:44 / /data rw - autofs systemd-1 rw
31 24 0:51 /export /data rw,relatime shared:9 - nfs4 nas:/lts rw,vers=4.2
32 24 8:17 /a\\040b /with\\040space ro - xfs /dev/sdb1 rw
";

    #[test]
    fn the_nearest_and_last_mount_counts() {
        let of = |path: &str| {
            let mount = mount_of(TABLE, Path::new(path)).unwrap();
            (mount.kind, mount.source)
        };
        let root = ("ext4".to_owned(), "/dev/sda1".to_owned());
        assert_eq!(of("/"), root);
        assert_eq!(of("/database"), root, "a name that only begins alike");
        assert_eq!(of("/data/raw"), ("nfs4".to_owned(), "nas:/lts".to_owned()));
        assert_eq!(of("/with space/x").0, "xfs");
        assert_eq!(mount_of("nonsense\n\n1 2 - x y\n", Path::new("/")), None);
    }
}
