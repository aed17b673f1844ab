//! Parameters of flows: from the server's JSON to the flow's type, their schema, and names made of them.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserializer;
use serde::de::{DeserializeOwned, Visitor};
use serde_json::{Map, Value, json};

/// Parameters as the server holds them.
pub(crate) type Parameters = Map<String, Value>;

/// Parameters that a flow does not take: where, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// A value is missing or of the wrong form.
    #[error("{}{problem}", place(path))]
    Invalid {
        /// Where, as a JSON path; `.` for all of them together.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// There is no such parameter.
    #[error("unknown parameter `{name}`; the flow takes {known}")]
    Unknown {
        /// Its name.
        name: String,
        /// The names that there are.
        known: String,
    },
}

fn place(path: &str) -> String {
    if path == "." { String::new() } else { format!("parameter `{path}`: ") }
}

/// Reads parameters as `P`.
pub(crate) fn parse<P: DeserializeOwned + JsonSchema>(parameters: &Parameters) -> Result<P, ParameterError> {
    let schema = schema::<P>();
    if let Some(known) = schema["properties"].as_object()
        && schema.get("additionalProperties").is_none_or(|more| *more == json!(false))
        && let Some(name) = parameters.keys().find(|name| !known.contains_key(*name))
    {
        let known: Vec<String> = known.keys().map(|name| format!("`{name}`")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(ParameterError::Unknown { name: name.clone(), known });
    }
    serde_path_to_error::deserialize(Value::Object(parameters.clone())).map_err(|error| {
        ParameterError::Invalid { path: error.path().to_string(), problem: error.inner().to_string() }
    })
}

/// The JSON Schema of `P` as Prefect's UI wants it: models under `definitions`, each property with a title
/// and its position in the form.
pub(crate) fn schema<P: DeserializeOwned + JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07();
    let mut schema = settings.into_generator().into_root_schema_for::<P>().to_value();
    spell_out_nullable(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.remove("$schema");
        root.insert("title".to_owned(), json!("Parameters"));
        root.insert("type".to_owned(), json!("object"));
        let properties = root.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            let declared = declared_fields::<P>();
            let mut names: Vec<String> = properties.keys().cloned().collect();
            names.sort_by_key(|name| declared.iter().position(|field| field == name).unwrap_or(usize::MAX));
            for (position, name) in names.iter().enumerate() {
                let Some(property) = properties.get_mut(name) else { continue };
                // A reference cannot stand beside other keys in draft 7.
                if let Some(reference) = property.get("$ref").cloned() {
                    *property = json!({"allOf": [{"$ref": reference}]});
                }
                if let Some(property) = property.as_object_mut() {
                    property.entry("title").or_insert_with(|| json!(name));
                    property.insert("position".to_owned(), json!(position));
                }
            }
        }
    }
    schema
}

/// Turns `"type": ["integer", "null"]` into `anyOf`, everywhere: the form of the UI knows optional values in
/// that spelling only, which is Python's.
fn spell_out_nullable(schema: &mut Value) {
    const ABOUT: [&str; 4] = ["title", "description", "default", "examples"];
    match schema {
        Value::Array(items) => items.iter_mut().for_each(spell_out_nullable),
        Value::Object(object) => {
            object.values_mut().for_each(spell_out_nullable);
            let Some(Value::Array(types)) = object.get("type") else { return };
            let real: Vec<Value> = types.iter().filter(|name| **name != json!("null")).cloned().collect();
            let [only] = real.as_slice() else { return };
            let (about, mut what): (Map<_, _>, Map<_, _>) =
                std::mem::take(object).into_iter().partition(|(key, _)| ABOUT.contains(&key.as_str()));
            what.insert("type".to_owned(), only.clone());
            *object = about;
            object.insert("anyOf".to_owned(), json!([what, {"type": "null"}]));
        }
        _ => {}
    }
}

/// The fields of `P` in the order of its declaration, which JSON objects do not keep. Empty if `P` is no
/// struct.
fn declared_fields<P: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // The probe gives no value, hence this is always an error.
    drop(P::deserialize(FieldProbe(&mut fields)));
    fields
}

/// Learns from the type that is to be read which fields it has.
struct FieldProbe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldProbe<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("only fields are asked for"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Fills `{name}` and `{name.field}` of a template from parameters. Text stands as it is, anything else as
/// JSON; what is unknown stays as it is written.
pub(crate) fn render(template: &str, parameters: &Parameters) -> String {
    let mut rendered = String::new();
    for piece in pieces(template) {
        match piece {
            Piece::Text(text) => rendered.push_str(text),
            Piece::Field(path) => match lookup(path, parameters) {
                Some(Value::String(text)) => rendered.push_str(text),
                Some(value) => rendered.push_str(&value.to_string()),
                None => rendered.extend(["{", path, "}"]),
            },
        }
    }
    rendered
}

/// The first parameter that a template names and a schema does not have.
pub(crate) fn unknown_field<'a>(template: &'a str, schema: &Value) -> Option<&'a str> {
    pieces(template).into_iter().find_map(|piece| match piece {
        Piece::Field(path) => {
            let name = path.split('.').next().unwrap_or(path);
            schema["properties"].get(name).is_none().then_some(path)
        }
        Piece::Text(_) => None,
    })
}

#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    Field(&'a str),
}

fn pieces(mut template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    while let Some((text, rest)) = template.split_once('{') {
        pieces.push(Piece::Text(text));
        let Some((field, rest)) = rest.split_once('}') else {
            pieces.push(Piece::Text("{"));
            template = rest;
            continue;
        };
        pieces.push(Piece::Field(field));
        template = rest;
    }
    pieces.push(Piece::Text(template));
    pieces
}

fn lookup<'a>(path: &str, parameters: &'a Parameters) -> Option<&'a Value> {
    let mut fields = path.split('.');
    let mut value = parameters.get(fields.next()?)?;
    for field in fields {
        value = value.get(field)?;
    }
    Some(value)
}

/// Reads `name=value` of a command line: JSON where it is JSON, text where it is not.
pub(crate) fn parse_argument(argument: &str) -> Result<(String, Value), String> {
    let (name, value) =
        argument.split_once('=').ok_or_else(|| format!("`{argument}` is not of the form name=value"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
    struct Archive {
        /// What to archive.
        dataset_ids: Vec<String>,
        #[serde(default)]
        job_id: Option<u32>,
        #[serde(default)]
        mode: Mode,
        size: Size,
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Full,
        Partial,
    }

    #[derive(Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
    struct Size {
        bytes: u64,
    }

    fn object(value: &Value) -> Parameters {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_wrong_value_is_named_by_its_path() {
        let given = object(&json!({"dataset_ids": ["a", 3], "size": {"bytes": 1}}));
        let error = parse::<Archive>(&given).unwrap_err();
        assert_eq!(
            error.to_string(),
            "parameter `dataset_ids[1]`: invalid type: integer `3`, expected a string"
        );
        let given = object(&json!({"dataset_ids": [], "size": {}}));
        assert_eq!(
            parse::<Archive>(&given).unwrap_err().to_string(),
            "parameter `size`: missing field `bytes`"
        );
        let given = object(&json!({"dataset_ids": []}));
        assert_eq!(parse::<Archive>(&given).unwrap_err().to_string(), "missing field `size`");
    }

    #[test]
    fn an_unknown_parameter_is_refused() {
        let given = object(&json!({"dataset_ids": [], "size": {"bytes": 1}, "jobid": 1}));
        assert_eq!(
            parse::<Archive>(&given).unwrap_err().to_string(),
            "unknown parameter `jobid`; the flow takes `dataset_ids`, `job_id`, `mode`, `size`"
        );
    }

    #[test]
    fn the_schema_is_the_form_of_the_ui() {
        insta::assert_json_snapshot!(schema::<Archive>());
    }

    #[test]
    fn a_name_is_filled_from_parameters() {
        let given = object(&json!({"job_id": "7f", "n": 3, "size": {"bytes": 5}, "ids": ["a"]}));
        assert_eq!(render("archive-job_id-{job_id}", &given), "archive-job_id-7f");
        assert_eq!(render("{n}/{size.bytes}/{ids}", &given), "3/5/[\"a\"]");
        assert_eq!(render("{nothing} {n} {open", &given), "{nothing} 3 {open");
        assert_eq!(unknown_field("{mode}-{size.x}-{mood}", &schema::<Archive>()), Some("mood"));
    }

    #[test]
    fn an_argument_is_json_or_text() {
        assert_eq!(parse_argument("n=3").unwrap(), ("n".to_owned(), json!(3)));
        assert_eq!(parse_argument("id=20.500/a=b").unwrap(), ("id".to_owned(), json!("20.500/a=b")));
        assert_eq!(parse_argument("l=[\"a\"]").unwrap().1, json!(["a"]));
        assert!(parse_argument("n").is_err());
    }
}
