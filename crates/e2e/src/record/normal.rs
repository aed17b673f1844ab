//! What is the same in every run of the same flow: records without ids, times, durations and random names.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

const ID_LENGTH: usize = 36;
/// Without its dashes.
const SHORT_ID_LENGTH: usize = 32;
/// Characters that tell the runs of one task apart.
const KEY_LENGTH: usize = 3;
/// Numbers that are durations, in seconds.
const DURATIONS: [&str; 3] = ["total_run_time", "estimated_run_time", "estimated_start_time_delta"];

/// Notes of Python's engine to itself: whether the server is to be asked about a state, and whether its result can be
/// told from others by its address, which for whole numbers depends on how large they are.
const OF_PYTHON: [&str; 2] = ["deferred", "untrackable_result"];

/// What stands for ids and names.
#[derive(Debug, Default)]
pub struct Names {
    ids: HashMap<String, String>,
    words: Vec<(String, String)>,
}

impl Names {
    /// From now on `name` stands for this id.
    pub fn id(&mut self, id: &str, name: impl Into<String>) {
        self.ids.insert(id.to_owned(), name.into());
    }

    /// From now on `name` stands for this word.
    pub fn word(&mut self, word: &str, name: impl Into<String>) {
        self.words.push((word.to_owned(), name.into()));
    }

    /// A record without what differs from run to run.
    pub fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) if text.parse::<Timestamp>().is_ok() => Value::String("<time>".to_owned()),
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(object) => {
                let entry = |(key, value): (&String, &Value)| {
                    let long =
                        DURATIONS.contains(&key.as_str()) && value.as_f64().is_some_and(|it| it != 0.0);
                    let mut value = if long { "<duration>".into() } else { self.value(value) };
                    if let Some(tags) = value.as_array_mut().filter(|_| key == "tags") {
                        // A set: Python tells it in any order.
                        tags.sort_by_key(ToString::to_string);
                    }
                    (self.text(key), value)
                };
                object.iter().filter(|(key, _)| !OF_PYTHON.contains(&key.as_str())).map(entry).collect()
            }
            other => other.clone(),
        }
    }

    /// A text without what differs from run to run. What the languages spell differently is spelled as in Rust:
    /// Python's `ValueError('boom')` is `ValueError: boom`, and where it adds a traceback nothing is added.
    pub fn text(&self, text: &str) -> String {
        let text =
            text.split_once("\nTraceback (most recent call last):").map_or(text, |(message, _)| message);
        let text = text.replace("ValueError('boom')", "ValueError: boom");
        // First the words: a random name may end like the key of a task run.
        let text = self.words.iter().fold(text, |text, (word, name)| text.replace(word, name));
        keyless(&self.without_ids(&text))
    }

    fn without_ids(&self, text: &str) -> String {
        let (mut plain, mut rest) = (String::new(), text);
        while let Some(first) = rest.chars().next() {
            let whole = !plain.ends_with(char::is_alphanumeric);
            let id = [ID_LENGTH, SHORT_ID_LENGTH].into_iter().find_map(|length| {
                let id = rest.get(..length).filter(|id| Uuid::try_parse(id).is_ok())?;
                let ends = rest.get(length..).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
                (whole && ends).then_some(id)
            });
            let taken = if let Some(id) = id {
                plain.push_str(self.ids.get(id).map_or("<id>", String::as_str));
                id.len()
            } else {
                plain.push(first);
                first.len_utf8()
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
        plain
    }
}

/// Names of task runs end in `-` and the beginning of a random key: three hexadecimal digits.
fn keyless(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('-') {
        plain.push_str(before);
        plain.push('-');
        let key =
            after.get(..KEY_LENGTH).filter(|key| key.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
        let follows = after.get(KEY_LENGTH..).and_then(|rest| rest.chars().next());
        let ends = follows.is_none_or(|c| !c.is_alphanumeric() && c != '-');
        let begins = before.chars().next_back().is_some_and(char::is_alphanumeric);
        rest = match key {
            Some(key) if ends && begins => {
                plain.push_str("<key>");
                after.get(key.len()..).unwrap_or_default()
            }
            _ => after,
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_gone() {
        let mut names = Names::default();
        names.id("01933b1c-1f4e-7c42-9d1c-5f0c1d2e3f40", "first");
        names.word("stoic-bee", "child");
        let record = json!({
            "id": "01933b1c-1f4e-7c42-9d1c-5f0c1d2e3f40",
            "resource": "prefect.task-run.01933b1c-1f4e-7c42-9d1c-5f0c1d2e3f41",
            "start_time": "2026-11-25T09:27:36.5Z",
            "total_run_time": 0.25,
            "name": "square-0f3",
            "message": "Run 'stoic-bee' of 'step-abc' and 'in-abcd'",
        });
        let plain = json!({
            "id": "first",
            "resource": "prefect.task-run.<id>",
            "start_time": "<time>",
            "total_run_time": "<duration>",
            "name": "square-<key>",
            "message": "Run 'child' of 'step-<key>' and 'in-abcd'",
        });
        assert_eq!(names.value(&record), plain);
    }

    #[test]
    fn errors_are_spelled_alike() {
        let python =
            "Task run failed with exception: ValueError('boom')\nTraceback (most recent call last):\n  x";
        assert_eq!(Names::default().text(python), "Task run failed with exception: ValueError: boom");
    }
}
