//! Validation of request bodies in the words of the backend's own validator.

use jiff::Timestamp;
use serde_json::Value;

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    Date,
    Object,
    List,
    NonEmptyList,
    Anything,
}

/// A field of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(pub &'static str, pub Kind, pub Need);

/// Whether a field has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Required,
    Optional,
}

/// The complaints about a body, empty when it is fine. Fields that no rule names are complained about.
pub(super) fn complaints(body: &Value, rules: &[Field]) -> Vec<String> {
    let Some(fields) = body.as_object() else { return vec!["the body must be an object".to_owned()] };
    let unknown = fields
        .keys()
        .filter(|name| rules.iter().all(|rule| rule.0 != *name))
        .map(|name| format!("property {name} should not exist"));
    let wrong = rules.iter().filter_map(|Field(name, kind, need)| match fields.get(*name) {
        None if *need == Need::Optional => None,
        value => complaint(name, *kind, value.unwrap_or(&Value::Null)),
    });
    unknown.chain(wrong).collect()
}

fn complaint(name: &str, kind: Kind, value: &Value) -> Option<String> {
    let (fits, demand) = match kind {
        Kind::Text => (value.is_string(), "must be a string"),
        Kind::Integer => (value.is_i64() || value.is_u64(), "must be an integer number"),
        Kind::Number => (value.is_number(), "must be a number conforming to the specified constraints"),
        Kind::Boolean => (value.is_boolean(), "must be a boolean value"),
        Kind::Date => (value.as_str().is_some_and(is_date), "must be a valid ISO 8601 date string"),
        Kind::Object => (value.is_object(), "must be an object"),
        Kind::List => (value.is_array(), "must be an array"),
        Kind::NonEmptyList => (value.as_array().is_some_and(|list| !list.is_empty()), "should not be empty"),
        Kind::Anything => (true, ""),
    };
    (!fits).then(|| format!("{name} {demand}"))
}

fn is_date(text: &str) -> bool {
    text.parse::<Timestamp>().is_ok() || text.parse::<jiff::civil::Date>().is_ok()
}
