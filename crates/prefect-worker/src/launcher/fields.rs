//! Reads a loosely typed object field by field, with errors that name the field.

use std::collections::BTreeMap;

use prefect_api::template::text_form;
use serde_json::{Map, Value};

use super::LaunchError;

/// An object whose fields are taken one by one; what is left was not understood.
pub(super) struct Fields {
    values: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(values: Map<String, Value>) -> Self {
        Self { values }
    }

    /// The value of a field; `null` counts as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// Text and nothing else, as [`exact_text`].
    pub(super) fn exact_text(&mut self, name: &str) -> Result<Option<String>, LaunchError> {
        self.take(name).map(|value| exact_text(name, &value)).transpose()
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, LaunchError> {
        self.take(name).map(|value| flag(name, &value)).transpose()
    }

    /// A whole number from 0 to `most`.
    pub(super) fn whole(&mut self, name: &str, most: u64) -> Result<Option<u64>, LaunchError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number.filter(|number| *number <= most) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &format!("a whole number from 0 to {most}"), &value)),
        }
    }

    /// A list of texts and nothing else.
    pub(super) fn exact_texts(&mut self, name: &str) -> Result<Vec<String>, LaunchError> {
        self.take(name).map(|value| exact_texts(name, &value)).transpose().map(Option::unwrap_or_default)
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, LaunchError> {
        self.take(name).map(|value| object(name, value)).transpose()
    }

    /// The fields nobody took.
    pub(super) fn into_rest(self) -> Map<String, Value> {
        self.values
    }

    /// Names of the fields nobody took.
    pub(super) fn rest(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }
}

/// A value of a wrong kind. It is not shown: it may be a secret that a block reference brought to the wrong
/// place, and the error becomes part of the run's state.
pub(super) fn wrong(name: &str, expected: &str, value: &Value) -> LaunchError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text of another form",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    LaunchError::Configuration { message: format!("{name} must be {expected}, but it is {kind}") }
}

pub(super) fn text(name: &str, value: Value) -> Result<String, LaunchError> {
    match value {
        Value::String(text) => Ok(text),
        value @ (Value::Number(_) | Value::Bool(_)) => Ok(text_form(&value)),
        value => Err(wrong(name, "text", &value)),
    }
}

/// Text. Unlike in [`text`] a number or a flag is none: Python's worker refuses them, and what they should be as
/// text is not for us to say.
pub(super) fn exact_text(name: &str, value: &Value) -> Result<String, LaunchError> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong(name, "text (in quotes)", value))
}

/// A list of texts, each as [`exact_text`].
pub(super) fn exact_texts(name: &str, value: &Value) -> Result<Vec<String>, LaunchError> {
    let items = value.as_array().ok_or_else(|| wrong(name, "a list of texts", value))?;
    items.iter().enumerate().map(|(index, item)| exact_text(&format!("{name}[{index}]"), item)).collect()
}

/// True or false, and the words and numbers that Python's worker takes for them.
pub(super) fn flag(name: &str, value: &Value) -> Result<bool, LaunchError> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
            _ => Err(wrong(name, "true or false", value)),
        },
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        _ => Err(wrong(name, "true or false", value)),
    }
}

pub(super) fn texts(name: &str, value: Value) -> Result<Vec<String>, LaunchError> {
    match value {
        Value::Array(items) => items
            .into_iter()
            .enumerate()
            .map(|(index, item)| text(&format!("{name}[{index}]"), item))
            .collect(),
        value => Err(wrong(name, "a list of texts", &value)),
    }
}

pub(super) fn object(name: &str, value: Value) -> Result<Map<String, Value>, LaunchError> {
    match value {
        Value::Object(object) => Ok(object),
        value => Err(wrong(name, "an object", &value)),
    }
}

pub(super) fn text_map(name: &str, value: Value) -> Result<BTreeMap<String, String>, LaunchError> {
    let entries = object(name, value)?.into_iter();
    entries.map(|(key, value)| Ok((key.clone(), text(&format!("{name}.{key}"), value)?))).collect()
}
