//! Blocks and variables of the server that a job configuration refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use super::placeholder::{Kind, Piece, Placeholder, pieces, placeholders, whole};
use super::{TemplateError, path, text_form};

/// Something to be read from the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// `{{ prefect.blocks.<type>.<name> }}`: the *data* of a block document, read with its secrets.
    Block {
        /// Slug of the block type.
        type_slug: String,
        /// Name of the block document.
        name: String,
    },
    /// `{"$ref": {"block_document_id": …}}`: the *data* of the block document with this id, with its secrets.
    BlockId(String),
    /// `{{ prefect.variables.<name> }}`: the value of a variable.
    Variable(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { type_slug, name } => write!(f, "the block {type_slug}/{name}"),
            Self::BlockId(id) => write!(f, "the block with id {id}"),
            Self::Variable(name) => write!(f, "the variable {name}"),
        }
    }
}

/// What the server said to references; `None`: it has no such thing.
pub type Answers = BTreeMap<Reference, Option<Value>>;

/// Result of one attempt to resolve.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// Everything is replaced.
    Complete(Value),
    /// These must be fetched first. Never empty, never holds what was answered already.
    Needs(BTreeSet<Reference>),
}

/// Replaces the references in `value` by `answers`.
///
/// Values of blocks may hold variable placeholders, which are resolved too; hence several rounds may be needed.
///
/// # Errors
/// A block that does not exist, or a path into it that does not. A missing variable is the empty text.
pub fn resolve(value: &Value, answers: &Answers) -> Result<Resolution, TemplateError> {
    let mut resolver = Resolver { answers, missing: BTreeSet::new() };
    let value = resolver.blocks(value)?;
    let value = resolver.variables(&value);
    Ok(if resolver.missing.is_empty() {
        Resolution::Complete(value)
    } else {
        Resolution::Needs(resolver.missing)
    })
}

struct Resolver<'a> {
    answers: &'a Answers,
    missing: BTreeSet<Reference>,
}

impl<'a> Resolver<'a> {
    /// `None` if unanswered; the answer may be that the server has no such thing.
    fn answer(&mut self, reference: &Reference) -> Option<&'a Option<Value>> {
        let answer = self.answers.get(reference);
        if answer.is_none() {
            self.missing.insert(reference.clone());
        }
        answer
    }

    fn blocks(&mut self, value: &Value) -> Result<Value, TemplateError> {
        Ok(match value {
            Value::Object(object) => {
                if let Some(id) = referenced_id(object) {
                    return Ok(self.block_data(Reference::BlockId(id.to_owned()))?.unwrap_or(Value::Null));
                }
                let resolved = object.iter().map(|(key, value)| Ok((key.clone(), self.blocks(value)?)));
                Value::Object(resolved.collect::<Result<_, _>>()?)
            }
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.blocks(item)).collect::<Result<_, _>>()?)
            }
            Value::String(text) => self.blocks_in_text(text)?,
            other => other.clone(),
        })
    }

    fn blocks_in_text(&mut self, text: &str) -> Result<Value, TemplateError> {
        if !placeholders(text).any(|placeholder| placeholder.kind() == Kind::Block) {
            return Ok(Value::String(text.to_owned()));
        }
        if let Some(only) = whole(text) {
            return Ok(self.block_value(only)?.unwrap_or(Value::Null));
        }
        let mut resolved = String::new();
        for piece in pieces(text) {
            match piece {
                Piece::Placeholder(placeholder) if placeholder.kind() == Kind::Block => {
                    match self.block_value(placeholder)? {
                        Some(Value::Array(_) | Value::Object(_)) => {
                            let placeholder = placeholder.name.to_owned();
                            return Err(TemplateError::BlockNotScalar { placeholder });
                        }
                        Some(value) => resolved.push_str(&text_form(&value)),
                        None => {}
                    }
                }
                Piece::Placeholder(placeholder) => resolved.push_str(placeholder.full),
                Piece::Text(text) => resolved.push_str(text),
            }
        }
        Ok(Value::String(resolved))
    }

    /// The value a block placeholder stands for; `None` as long as the block is unanswered.
    fn block_value(&mut self, placeholder: Placeholder<'_>) -> Result<Option<Value>, TemplateError> {
        let invalid = || TemplateError::InvalidBlockPlaceholder { placeholder: placeholder.name.to_owned() };
        let mut parts = placeholder.key().splitn(3, '.');
        let type_slug = parts.next().filter(|part| !part.is_empty()).ok_or_else(invalid)?.to_owned();
        let name = parts.next().filter(|part| !part.is_empty()).ok_or_else(invalid)?.to_owned();
        let key_path = parts.next();
        let Some(data) = self.block_data(Reference::Block { type_slug, name })? else { return Ok(None) };

        // A block that only holds `value` stands for it, unless the path says `value` itself.
        let data = match data {
            Value::Object(mut object)
                if object.len() == 1
                    && object.contains_key("value")
                    && !key_path.is_some_and(|path| path.starts_with("value")) =>
            {
                object.remove("value").unwrap_or(Value::Null)
            }
            data => data,
        };
        let Some(key_path) = key_path else { return Ok(Some(data)) };
        let found = match &data {
            Value::Object(object) => path::get(object, key_path).cloned(),
            _ => None,
        };
        found
            .map(Some)
            .ok_or_else(|| TemplateError::BlockPathNotFound { placeholder: placeholder.name.to_owned() })
    }

    fn block_data(&mut self, reference: Reference) -> Result<Option<Value>, TemplateError> {
        match self.answer(&reference) {
            None => Ok(None),
            Some(None) => Err(TemplateError::BlockNotFound { reference }),
            Some(Some(data)) => Ok(Some(data.clone())),
        }
    }

    fn variables(&mut self, value: &Value) -> Value {
        match value {
            Value::Object(object) => Value::Object(
                object.iter().map(|(key, value)| (key.clone(), self.variables(value))).collect(),
            ),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.variables(item)).collect()),
            Value::String(text) => match whole(text) {
                Some(only) if only.kind() == Kind::Variable => self.variable(only),
                _ => Value::String(self.variables_in_text(text)),
            },
            other => other.clone(),
        }
    }

    fn variables_in_text(&mut self, text: &str) -> String {
        let mut resolved = String::new();
        for piece in pieces(text) {
            match piece {
                Piece::Placeholder(placeholder) if placeholder.kind() == Kind::Variable => {
                    resolved.push_str(&text_form(&self.variable(placeholder)));
                }
                Piece::Placeholder(placeholder) => resolved.push_str(placeholder.full),
                Piece::Text(text) => resolved.push_str(text),
            }
        }
        resolved
    }

    /// The variable's value; the empty text if there is none (or none yet).
    fn variable(&mut self, placeholder: Placeholder<'_>) -> Value {
        let reference = Reference::Variable(placeholder.key().to_owned());
        let value = self.answer(&reference).and_then(Option::as_ref);
        value.cloned().unwrap_or_else(|| Value::String(String::new()))
    }
}

fn referenced_id(object: &Map<String, Value>) -> Option<&str> {
    object.get("$ref")?.get("block_document_id")?.as_str().filter(|id| !id.is_empty())
}
