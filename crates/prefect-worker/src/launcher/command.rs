//! Command lines.

use serde_json::Value;

use super::LaunchError;
use super::fields::{exact_texts, wrong};

/// Splits text as a shell would; a list is taken as it is.
pub(super) fn words(name: &str, value: Value) -> Result<Vec<String>, LaunchError> {
    match value {
        Value::String(line) => split(name, &line),
        value => exact_texts(name, &value),
    }
}

/// Splits a command line as Python's `shlex.split` does, hence as docker-py: no comments, no expansions, and in
/// double quotes a backslash is one unless a quote or another backslash follows.
pub(super) fn split(name: &str, line: &str) -> Result<Vec<String>, LaunchError> {
    split_words(line).ok_or_else(|| {
        wrong(name, "a command line (a quote or an escape is not closed)", &Value::String(line.to_owned()))
    })
}

fn split_words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    // The word that has begun, if one has: `""` is a word too.
    let mut word: Option<String> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(rest.next()?),
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        c if c == quote => break,
                        '\\' if quote == '"' => match rest.next()? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::split_words;

    #[test]
    fn lines_are_split_as_pythons_shlex_splits_them() {
        for (line, words) in [
            ("", &[] as &[&str]),
            (" \t\r\n", &[]),
            ("a  b\tc\nd", &["a", "b", "c", "d"]),
            (r#"sh -c 'echo "a b"'"#, &["sh", "-c", r#"echo "a b""#]),
            (r#"a'b'"c" "" ''"#, &["abc", "", ""]),
            (r#"a\ b \"c\" \\ \n"#, &["a b", "\"c\"", "\\", "n"]),
            (r#""\$HOME \` \\ \" \n""#, &[r#"\$HOME \` \ " \n"#]),
            (r"'a\b'", &[r"a\b"]),
            ("echo a # b #c", &["echo", "a", "#", "b", "#c"]),
            ("a \\\nb", &["a", "\nb"]),
            ("a\u{a0}b", &["a\u{a0}b"]),
        ] {
            assert_eq!(split_words(line).unwrap(), words, "{line:?}");
        }
        for line in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(split_words(line), None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("[ a-z'\"\\\\#$\n]{0,6}", 0..5)) {
            let line: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\"'\"'"))).collect();
            prop_assert_eq!(split_words(&line.join(" ")).unwrap(), words);
        }
    }
}
