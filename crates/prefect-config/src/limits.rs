//! Limits on how many task runs with a tag run at once.

use std::path::Path;

use serde_json::Value;

use crate::section::number_of;
use crate::{Environment, Error, keys};

/// The tag that each key limits.
const TAGS: [(&str, &str); 3] = [
    ("LTS_FREE_LIMIT", "wait-for-free-space-in-lts"),
    ("LTS_WRITE_LIMIT", "write-to-lts-share"),
    ("LTS_READ_LIMIT", "read-from-lts-share"),
];

/// A tag limit as it should be on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagLimit {
    /// The tag of the task runs.
    pub tag: String,
    /// How many of them may run at once.
    pub limit: u32,
}

/// The limits of a file, with the environment laid over it.
///
/// # Errors
/// An unreadable or malformed file, an unknown or doubled key, a value that is not a whole number of at least 1:
/// with a limit of 0 the server refuses every such task run instead of letting it wait.
pub(crate) fn load(path: &Path, environment: &Environment) -> Result<Vec<TagLimit>, Error> {
    let names: Vec<_> = TAGS.iter().map(|(key, _)| *key).collect();
    let found = keys::load(path, environment, &names, str::to_owned)?;
    let mut limits = Vec::new();
    for (key, tag) in TAGS {
        if let Some((place, text)) = found.get(key) {
            let limit = number_of(place, &Value::String(text.clone()), 1)?;
            limits.push(TagLimit { tag: tag.to_owned(), limit });
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::{TagLimit, load};
    use crate::Error;

    fn read(content: &str, environment: &[(&str, &str)]) -> Result<Vec<TagLimit>, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits.toml");
        std::fs::write(&path, content).unwrap();
        load(&path, &environment.iter().copied().collect())
    }

    fn limit(tag: &str, limit: u32) -> TagLimit {
        TagLimit { tag: tag.to_owned(), limit }
    }

    #[test]
    fn keys_stand_for_tags_and_the_environment_overrides() {
        let limits =
            read("LTS_WRITE_LIMIT = 4\n[lts]\nLTS_FREE_LIMIT = 1", &[("LTS_WRITE_LIMIT", "2")]).unwrap();
        assert_eq!(limits, [limit("wait-for-free-space-in-lts", 1), limit("write-to-lts-share", 2)]);
        assert_eq!(read("", &[]).unwrap(), []);
        assert_eq!(read("", &[("LTS_READ_LIMIT", "3")]).unwrap(), [limit("read-from-lts-share", 3)]);
    }

    #[test]
    fn what_is_not_a_limit_is_refused() {
        for content in
            ["LTS_READ_LIMIT = 0", "LTS_READ_LIMIT = -1", "LTS_READ_LIMIT = 1.5", "LTS_READ_LIMIT = 'x'"]
        {
            assert!(read(content, &[]).unwrap_err().to_string().contains("whole number of at least 1"));
        }
        let error = read("LTS_REED_LIMIT = 1", &[]).unwrap_err();
        assert!(error.to_string().contains("limits.toml: LTS_REED_LIMIT"));
        assert_eq!(error.hint().unwrap(), "the nearest known key is LTS_READ_LIMIT");
    }
}
