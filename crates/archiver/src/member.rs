//! The path of a file within its dataset: what becomes the name of a tar member.

use std::fmt;

/// A relative path that stays below the folder it is unpacked in: segments separated by `/`, none of them empty,
/// `.` or `..`, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(String);

/// A file name that cannot be archived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("accept file name {path:?}: {reason}")]
pub struct InvalidMemberPath {
    /// The name as it was found.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl MemberPath {
    /// Checks a path.
    pub fn new(path: &str) -> Result<Self, InvalidMemberPath> {
        let reason = if path.is_empty() {
            "it is empty"
        } else if path.chars().any(char::is_control) {
            "it holds a control character"
        } else if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            "it has an empty, \".\" or \"..\" segment"
        } else {
            return Ok(Self(path.to_owned()));
        };
        Err(InvalidMemberPath { path: path.to_owned(), reason })
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders this path lies in, outermost first.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').filter_map(|(end, _)| self.0.get(..end))
    }
}

impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_folder_or_cannot_be_named_are_refused() {
        for bad in ["", "/etc/passwd", "a//b", "./a", "a/../b", "..", "a/", "a\nb", "a\0b"] {
            assert!(MemberPath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "with space.txt", "ünï/Ω.dat", "a/..b/c", "-rf"] {
            assert!(MemberPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn folders_are_all_proper_ancestors() {
        let path = MemberPath::new("a/ü/c.txt").unwrap();
        assert_eq!(path.folders().collect::<Vec<_>>(), ["a", "a/ü"]);
    }
}
