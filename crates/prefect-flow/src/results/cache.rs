//! When the result of an earlier run of a task is taken instead of running it.

use std::time::Duration;

use prefect_api::id::FlowRunId;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::random_key;

/// What makes two runs of a task equal, so that the second takes the result of the first.
#[derive(Debug)]
pub struct Cache {
    key: Source,
    within_run: bool,
    lasts: Option<Duration>,
}

#[derive(Debug)]
enum Source {
    /// Nothing: each run has a key of its own.
    Random,
    Given(String),
    Inputs(Result<Value, serde_json::Error>),
}

/// What a key is made of besides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) flow: &'a str,
    pub(crate) task: &'a str,
    pub(crate) version: &'a str,
    pub(crate) run: FlowRunId,
}

/// Under which a result is stored.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// Whether it is worth looking there before.
    pub(crate) is_shared: bool,
    pub(crate) lasts: Option<Duration>,
}

impl Cache {
    /// Equal are runs with this key, whatever their task: it is what Python's `cache_key_fn` gives. It is a file's name
    /// in the storage of results.
    pub fn key(key: impl Into<String>) -> Self {
        Self { key: Source::Given(key.into()), within_run: false, lasts: None }
    }

    /// Equal are runs of the same task with equal inputs, as long as the program has the same version: that stands for
    /// the task's code.
    pub fn inputs(inputs: &(impl Serialize + ?Sized)) -> Self {
        Self { key: Source::Inputs(serde_json::to_value(inputs)), within_run: false, lasts: None }
    }

    /// Only within one flow run: when it is tried again, what was done is not done again.
    #[must_use]
    pub const fn within_run(mut self) -> Self {
        self.within_run = true;
        self
    }

    /// Only for so long.
    #[must_use]
    pub const fn expires_after(mut self, lasts: Duration) -> Self {
        self.lasts = Some(lasts);
        self
    }

    pub(crate) const fn none() -> Self {
        Self { key: Source::Random, within_run: false, lasts: None }
    }

    pub(crate) fn resolve(self, identity: Identity<'_>) -> Result<Key, serde_json::Error> {
        let Identity { flow, task, version, run } = identity;
        let run = self.within_run.then_some(run);
        let (key, is_shared) = match self.key {
            Source::Random => (random_key(), false),
            Source::Given(key) => match run {
                Some(run) => (digest(&json!([key, run])), true),
                None => (key, true),
            },
            Source::Inputs(inputs) => (digest(&json!([flow, task, version, run, inputs?])), true),
        };
        Ok(Key { name: key, is_shared, lasts: self.lasts })
    }
}

fn digest(parts: &Value) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.to_string().as_bytes()).simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cache: Cache, task: &str, version: &str, run: u128) -> String {
        let run = FlowRunId(Uuid::from_u128(run));
        cache.resolve(Identity { flow: "f", task, version, run }).unwrap().name
    }

    #[test]
    fn equal_runs_have_equal_keys_and_others_do_not() {
        let inputs = || Cache::inputs(&("a", 1));
        assert_eq!(key(inputs(), "t", "1", 1), key(inputs(), "t", "1", 2));
        assert_ne!(key(inputs(), "t", "1", 1), key(inputs(), "t", "2", 1), "another version");
        assert_ne!(key(inputs(), "t", "1", 1), key(inputs(), "u", "1", 1), "another task");
        assert_ne!(key(inputs(), "t", "1", 1), key(Cache::inputs(&("a", 2)), "t", "1", 1));
        assert_ne!(key(inputs().within_run(), "t", "1", 1), key(inputs().within_run(), "t", "1", 2));
        assert_eq!(key(Cache::key("k"), "t", "1", 1), "k");
        assert_ne!(key(Cache::none(), "t", "1", 1), key(Cache::none(), "t", "1", 1));
    }
}
