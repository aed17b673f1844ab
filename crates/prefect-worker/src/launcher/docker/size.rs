//! Amounts of memory as Docker users write them: `512m`, `1.5g`, `100000`.

/// The number of bytes, or `None` if `text` is not an amount. Units are `b k m g t` (powers of 1024), with
/// an optional `b` after them; a bare number is bytes; `-1` is Docker's "no limit".
pub(crate) fn parse(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.strip_prefix(number)? {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * f64::from(1_u32 << (shift / 2)).powi(2);
    #[expect(clippy::cast_possible_truncation, reason = "bounded; fractions of a byte mean nothing")]
    (bytes.is_finite() && bytes.abs() < 9.0e18).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
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
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "m", "12x", "1 2", "a1", "nan", "1e30g"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
