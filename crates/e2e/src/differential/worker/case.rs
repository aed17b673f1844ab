//! The cases: job variables as data, one JSON object a line in `crates/e2e/differential/worker`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The files of cases; a case is called `file/name`.
const FILES: [(&str, &str); 10] = [
    ("command", include_str!("../../../differential/worker/command.jsonl")),
    ("container", include_str!("../../../differential/worker/container.jsonl")),
    ("env", include_str!("../../../differential/worker/env.jsonl")),
    ("image", include_str!("../../../differential/worker/image.jsonl")),
    ("kwargs", include_str!("../../../differential/worker/kwargs.jsonl")),
    ("labels", include_str!("../../../differential/worker/labels.jsonl")),
    ("memory", include_str!("../../../differential/worker/memory.jsonl")),
    ("name", include_str!("../../../differential/worker/name.jsonl")),
    ("network", include_str!("../../../differential/worker/network.jsonl")),
    ("volumes", include_str!("../../../differential/worker/volumes.jsonl")),
];

/// The variables of the Docker template of Python's worker; ours has more.
pub const VARIABLES: [&str; 16] = [
    "auto_remove",
    "command",
    "container_create_kwargs",
    "env",
    "image",
    "image_pull_policy",
    "labels",
    "mem_limit",
    "memswap_limit",
    "name",
    "network_mode",
    "networks",
    "privileged",
    "registry_credentials",
    "stream_output",
    "volumes",
];

/// The template of the pool that a case runs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The default of Docker pools.
    #[default]
    Default,
    /// The same without types: the server lets every value through to the worker.
    Open,
    /// One that a team made for itself, with defaults and placeholders of its own.
    Custom,
}

/// What a deployment and its run ask for.
///
/// Text may hold tokens such as `<image>` for what only exists while the cases run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The name, unique among all.
    pub name: String,
    /// Where it runs.
    #[serde(default)]
    pub pool: Pool,
    /// Job variables of the deployment; the image is the probe's unless they or the run's name another.
    #[serde(default)]
    pub deployment: Map<String, Value>,
    /// Job variables of the run.
    #[serde(default)]
    pub run: Map<String, Value>,
    /// Name of the run; made of the case's if absent.
    #[serde(default)]
    pub run_name: Option<String>,
    /// Name of a container that exists before.
    #[serde(default)]
    pub taken: Option<String>,
    /// Whether it is one of the few that stand for all where time is short.
    #[serde(default)]
    pub quick: bool,
    /// Whether the worker is expected to print what the container prints; absent: nobody looks.
    #[serde(default)]
    pub streams: Option<bool>,
}

/// All cases.
///
/// # Errors
/// A line that is no case, or two cases of one name.
pub fn all() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (file, text) in FILES {
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let case: Case = serde_json::from_str(line)
                .with_context(|| format!("failed to read line {} of {file}.jsonl", index + 1))?;
            cases.push(Case { name: format!("{file}/{}", case.name), ..case });
        }
    }
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    ensure!(names.len() == cases.len(), "two cases have one name");
    Ok(cases)
}

/// What stands for the tokens, by their names without the angle brackets.
pub type Tokens = BTreeMap<&'static str, String>;

impl crate::differential::Case for Case {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_quick(&self) -> bool {
        self.quick
    }
}

impl Case {
    /// The case with its tokens replaced, and the probe's image unless it names one.
    #[must_use]
    pub fn filled(&self, tokens: &Tokens) -> Self {
        let object = |object: &Map<String, Value>| match filled(&Value::Object(object.clone()), tokens) {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        let text = |text: &String| filled_text(text, tokens);
        let mut deployment = self.deployment.clone();
        if !deployment.contains_key("image") && !self.run.contains_key("image") && self.pool != Pool::Custom {
            deployment.insert("image".to_owned(), "<image>".into());
        }
        Self {
            deployment: object(&deployment),
            run: object(&self.run),
            run_name: self.run_name.as_ref().map(text),
            taken: self.taken.as_ref().map(text),
            ..self.clone()
        }
    }
}

/// `value` with the tokens of its texts replaced, keys included.
pub fn filled(value: &Value, tokens: &Tokens) -> Value {
    match value {
        Value::String(text) => Value::String(filled_text(text, tokens)),
        Value::Array(items) => items.iter().map(|item| filled(item, tokens)).collect(),
        Value::Object(object) => Value::Object(
            object.iter().map(|(key, value)| (filled_text(key, tokens), filled(value, tokens))).collect(),
        ),
        other => other.clone(),
    }
}

fn filled_text(text: &str, tokens: &Tokens) -> String {
    let mut text = text.to_owned();
    for (name, value) in tokens {
        text = text.replace(&format!("<{name}>"), value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_are_read_and_cover_every_variable() {
        let cases = all().unwrap();
        assert!(cases.len() >= 120, "there are {} cases", cases.len());
        for name in VARIABLES {
            let sets = |case: &&Case| case.deployment.contains_key(name) || case.run.contains_key(name);
            assert!(
                cases.iter().filter(|case| case.quick).any(|case| sets(&case)),
                "no quick case sets {name}"
            );
        }
    }

    #[test]
    fn tokens_are_replaced_in_keys_and_values() {
        let tokens = Tokens::from([("network", "n1".to_owned())]);
        let value = serde_json::json!({"<network>": ["a-<network>", 1, "<other>"]});
        assert_eq!(filled(&value, &tokens), serde_json::json!({"n1": ["a-n1", 1, "<other>"]}));
    }
}
