//! Amounts of memory as Docker users write them: `512m`, `1.5g`, `100000`.

use serde_json::Value;

use super::super::LaunchError;
use super::super::fields::wrong;

/// The number of bytes of a value: a whole number, or text for [`parse`].
pub(super) fn of_value(name: &str, value: &Value) -> Result<i64, LaunchError> {
    let bytes = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => parse(text),
        _ => None,
    };
    bytes.ok_or_else(|| wrong(name, "an amount of memory such as 512m or 2g, or a number of bytes", value))
}

/// The number of bytes, or `None` if `text` is not an amount. As in docker-py, units are `b k m g` (powers of
/// 1024) of either case, with an optional `b` after them; a bare number is bytes; numbers are written as Python
/// writes floats; the empty text is 0. `t` is understood too.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let mut text = text;
    let mut ends = text.chars().rev();
    if let (Some('b' | 'B'), Some(before)) = (ends.next(), ends.next())
        && before.is_alphabetic()
    {
        text = text.get(..text.len() - 1)?;
    }
    let Some(last) = text.chars().next_back() else { return Some(0) };
    let (number, shift) = match last.to_ascii_lowercase() {
        '0'..='9' => (text, 0),
        'b' => (text.get(..text.len() - 1)?, 0),
        'k' => (text.get(..text.len() - 1)?, 10),
        'm' => (text.get(..text.len() - 1)?, 20),
        'g' => (text.get(..text.len() - 1)?, 30),
        't' => (text.get(..text.len() - 1)?, 40),
        _ => return None,
    };
    let bytes = float(number)? * f64::from(1_u32 << (shift / 2)).powi(2);
    #[expect(clippy::cast_possible_truncation, reason = "bounded; fractions of a byte mean nothing")]
    (bytes.is_finite() && bytes.abs() < 9.0e18).then_some(bytes as i64)
}

/// A number as Python's `float` reads it: white space around it, and underscores between digits.
fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = rest.next() {
        if c != '_' {
            plain.push(c);
        } else if !previous.is_ascii_digit() || !rest.peek().is_some_and(char::is_ascii_digit) {
            return None;
        }
        previous = c;
    }
    plain.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse;

    #[test]
    fn amounts_are_read_as_docker_py_reads_them() {
        for (text, bytes) in [
            ("100000", 100_000),
            ("100000b", 100_000),
            ("1000k", 1_024_000),
            ("128m", 134_217_728),
            ("128MB", 134_217_728),
            ("1.5g", 1_610_612_736),
            ("2T", 2_199_023_255_552),
            ("-1", -1),
            ("", 0),
            ("64 m", 67_108_864),
            (" 1k", 1024),
            ("1_000k", 1_024_000),
            ("1e3", 1000),
            ("+.5k", 512),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in
            ["m", "12x", "1 2", "a1", "nan", "1e30g", "64m ", "64mib", "_1", "1__0", "1_m", "infm", "ß"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "[ 0-9a-zA-Z_.+éß-]{0,8}") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_amounts_are_exact(count in 0_i64..1 << 20, unit in 0_usize..4) {
            let (name, bytes) = [("b", 1_i64), ("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30)][unit];
            prop_assert_eq!(parse(&format!("{count}{name}")), Some(count * bytes));
            let spelled = format!("{count}{}b", name.to_uppercase());
            prop_assert_eq!(parse(&spelled), Some(count * bytes));
        }
    }
}
