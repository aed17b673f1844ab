//! How the value of one option is written.

use prefect_api::template::text_form;
use serde_json::{Map, Value, json};

use super::super::super::LaunchError;
use super::super::super::command;
use super::super::super::fields::{exact_text, exact_texts, wrong};
use super::super::size;
use super::object::{self, Field};

/// A form, and how it becomes the engine's.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Text,
    Texts,
    /// A list, or a text for a list of one.
    TextOrTexts,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A command line: text is split as a shell would.
    Command,
    Flag,
    Integer,
    /// A whole number below 65,536.
    Small,
    /// A number, or text with a unit.
    Bytes,
    /// Texts by name.
    TextMap,
    /// Values by name; all become text.
    Sysctls,
    /// A name or number, or a pair of them.
    User,
    /// A list of names or numbers.
    Groups,
    /// A list, or text with commas.
    VolumesFrom,
    /// `"/dev/a:/dev/b:rwm"` or the engine's own object.
    Devices,
    Object(&'static [Field]),
    Objects(&'static [Field]),
    /// `{"/run": "size=1m"}` or `["/run:size=1m"]`.
    Tmpfs,
    /// `{"container": "alias"}` or a list of pairs.
    Links,
}

impl Form {
    /// The value in the engine's form.
    pub(super) fn convert(self, path: &str, value: &Value) -> Result<Value, LaunchError> {
        Ok(match self {
            Self::Text => json!(exact_text(path, value)?),
            Self::Texts => json!(exact_texts(path, value)?),
            Self::TextOrTexts => match value {
                Value::String(one) => json!([one]),
                value => json!(exact_texts(path, value)?),
            },
            Self::Choice(choices) => {
                let chosen = value.as_str().filter(|chosen| choices.contains(chosen));
                json!(chosen.ok_or_else(|| wrong(path, &choices.join(" or "), value))?)
            }
            Self::Command => json!(command::words(path, value.clone())?),
            Self::Flag => json!(boolean(path, value)?),
            Self::Integer => json!(integer(path, value)?),
            Self::Small => match u16::try_from(integer(path, value)?) {
                Ok(number) => json!(number),
                Err(_) => return Err(wrong(path, "a whole number from 0 to 65535", value)),
            },
            Self::Bytes => json!(size::of_value(path, value)?),
            Self::TextMap => Value::Object(text_map(path, value)?),
            Self::Sysctls => each(path, value, |path, item| Ok(json!(text_of_scalar(path, item)?)))?,
            Self::User => json!(text_of_scalar(path, value)?),
            Self::Groups => {
                let groups = items(path, value)?.map(|(path, item)| text_of_scalar(&path, item));
                json!(groups.collect::<Result<Vec<_>, _>>()?)
            }
            Self::VolumesFrom => match value {
                Value::String(names) => json!(names.split(',').collect::<Vec<_>>()),
                value => json!(exact_texts(path, value)?),
            },
            Self::Devices => Value::Array(
                items(path, value)?.map(|(path, item)| device(&path, item)).collect::<Result<_, _>>()?,
            ),
            Self::Object(fields) => object::convert(path, value, fields)?,
            Self::Objects(fields) => {
                let objects = items(path, value)?.map(|(path, item)| object::convert(&path, item, fields));
                Value::Array(objects.collect::<Result<_, _>>()?)
            }
            Self::Tmpfs => tmpfs(path, value)?,
            Self::Links => links(path, value)?,
        })
    }
}

/// The items of a list with their paths.
pub(super) fn items<'a>(
    path: &str,
    value: &'a Value,
) -> Result<impl Iterator<Item = (String, &'a Value)>, LaunchError> {
    let items = value.as_array().ok_or_else(|| wrong(path, "a list", value))?;
    let path = path.to_owned();
    Ok(items.iter().enumerate().map(move |(index, item)| (format!("{path}[{index}]"), item)))
}

/// JSON's own true or false: the engine takes no words for them.
pub(super) fn boolean(path: &str, value: &Value) -> Result<bool, LaunchError> {
    value.as_bool().ok_or_else(|| wrong(path, "true or false, without quotes", value))
}

pub(super) fn integer(path: &str, value: &Value) -> Result<i64, LaunchError> {
    value.as_i64().ok_or_else(|| wrong(path, "a whole number, without quotes", value))
}

/// Text, or a number as text.
pub(super) fn text_of_scalar(path: &str, value: &Value) -> Result<String, LaunchError> {
    match value {
        Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok(text_form(value)),
        value => Err(wrong(path, "text or a number", value)),
    }
}

/// Texts by name.
pub(super) fn text_map(path: &str, value: &Value) -> Result<Map<String, Value>, LaunchError> {
    match each(path, value, |path, item| Ok(json!(exact_text(path, item)?)))? {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// Every value of an object, converted.
fn each(
    path: &str,
    value: &Value,
    convert: impl Fn(&str, &Value) -> Result<Value, LaunchError>,
) -> Result<Value, LaunchError> {
    let object = value.as_object().ok_or_else(|| wrong(path, "an object of names and values", value))?;
    let entries =
        object.iter().map(|(key, item)| Ok((key.clone(), convert(&format!("{path}.{key}"), item)?)));
    Ok(Value::Object(entries.collect::<Result<_, LaunchError>>()?))
}

fn device(path: &str, value: &Value) -> Result<Value, LaunchError> {
    let Some(mapping) = value.as_str() else { return object::convert(path, value, object::DEVICE) };
    let mut parts = mapping.split(':');
    let host = parts.next().unwrap_or_default();
    Ok(json!({
        "PathOnHost": host,
        "PathInContainer": parts.next().unwrap_or(host),
        "CgroupPermissions": parts.next().unwrap_or("rwm"),
    }))
}

fn tmpfs(path: &str, value: &Value) -> Result<Value, LaunchError> {
    if value.is_object() {
        return each(path, value, |path, options| match options {
            Value::Null => Ok(json!("")),
            options => Ok(json!(exact_text(path, options)?)),
        });
    }
    let mounts = exact_texts(path, value)?;
    let mounts = mounts.iter().map(|mount| mount.split_once(':').unwrap_or((mount, "")));
    Ok(Value::Object(mounts.map(|(target, options)| (target.to_owned(), json!(options))).collect()))
}

fn links(path: &str, value: &Value) -> Result<Value, LaunchError> {
    let pair = |container: &str, alias: Option<&str>| match alias {
        Some(alias) if !alias.is_empty() => format!("{container}:{alias}"),
        _ => container.to_owned(),
    };
    let wrong = || wrong(path, "an object of containers and aliases, or a list of such pairs", value);
    let mut links = match value {
        Value::Object(links) => links
            .iter()
            .map(|(container, alias)| match alias {
                Value::String(_) | Value::Null => Ok(pair(container, alias.as_str())),
                _ => Err(wrong()),
            })
            .collect::<Result<Vec<_>, _>>()?,
        Value::Array(pairs) => pairs
            .iter()
            .map(|item| match item.as_array().map(Vec::as_slice) {
                Some([Value::String(container), alias @ (Value::String(_) | Value::Null)]) => {
                    Ok(pair(container, alias.as_str()))
                }
                _ => Err(wrong()),
            })
            .collect::<Result<Vec<_>, _>>()?,
        _ => return Err(wrong()),
    };
    links.sort();
    Ok(json!(links))
}
