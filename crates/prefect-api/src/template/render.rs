//! Substitution of job variables, context values and environment variables.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::path;
use super::placeholder::{Kind, Piece, pieces, whole};

/// How environment variables are looked up.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Fills placeholders anywhere in `template`. `None`: the value is to be left out.
pub(super) fn render(
    template: &Value,
    values: &Map<String, Value>,
    environment: Environment<'_>,
) -> Option<Value> {
    match template {
        Value::String(text) => match whole(text) {
            Some(only) if only.kind() == Kind::Standard => path::get(values, only.name).cloned(),
            _ => Some(Value::String(render_pieces(text, values, environment))),
        },
        Value::Object(object) => Some(Value::Object(
            object
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), render(value, values, environment)?)))
                .collect(),
        )),
        Value::Array(items) => {
            Some(Value::Array(items.iter().filter_map(|item| render(item, values, environment)).collect()))
        }
        other => Some(other.clone()),
    }
}

/// Fills `{{ ctx.* }}`-like placeholders of a text from `values`; what is missing becomes nothing.
///
/// Returns `None` if the text is exactly one placeholder that has no value, or null.
pub fn render_text(
    text: &str,
    values: &Map<String, Value>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    let rendered = render(&Value::String(text.to_owned()), values, environment)?;
    (!rendered.is_null()).then(|| text_form(&rendered))
}

fn render_pieces(text: &str, values: &Map<String, Value>, environment: Environment<'_>) -> String {
    let mut rendered = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => rendered.push_str(text),
            Piece::Placeholder(placeholder) => match placeholder.kind() {
                Kind::Standard => {
                    rendered
                        .push_str(&path::get(values, placeholder.name).map(text_form).unwrap_or_default());
                }
                Kind::Environment => rendered.push_str(&environment(placeholder.key()).unwrap_or_default()),
                // These wait for the server's answers.
                Kind::Block | Kind::Variable => rendered.push_str(placeholder.full),
            },
        }
    }
    rendered
}

/// A value as it stands inside text, the way Prefect writes it: `True`, `None`, `[1, 'a']`.
pub fn text_form(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => {
            let mut text = String::new();
            write_nested(&mut text, other);
            text
        }
    }
}

fn write_nested(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(number) if number.is_f64() => write_float(out, number.as_f64().unwrap_or_default()),
        // Writing to a String cannot fail.
        Value::Number(number) => write!(out, "{number}").unwrap_or_default(),
        Value::String(text) => write_quoted(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_nested(out, item);
            }
            out.push(']');
        }
        Value::Object(object) => {
            out.push('{');
            for (index, (key, item)) in object.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_quoted(out, key);
                out.push_str(": ");
                write_nested(out, item);
            }
            out.push('}');
        }
    }
}

/// A float as Python's `repr` writes it: `1.0`, `0.0001`, `1e-05`, `1e+16`.
fn write_float(out: &mut String, number: f64) {
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        out.push_str(&plain);
        if !plain.contains('.') {
            out.push_str(".0");
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        // Writing to a String cannot fail.
        write!(out, "{mantissa}e{sign}{:02}", exponent.abs()).unwrap_or_default();
    }
}

fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                // Writing to a String cannot fail.
                match code {
                    ..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                }
                .unwrap_or_default();
            }
        }
    }
    out.push(quote);
}

/// Whether Python's `repr` shows a character as it is. Rust's `Debug` asks the same of it; after a letter, so that
/// accents, which Python shows, are not taken for a text's beginning.
fn is_printable(c: char) -> bool {
    let mut text = String::from("a");
    text.push(c);
    !text.escape_debug().any(|c| c == '{') || c == '{'
}
