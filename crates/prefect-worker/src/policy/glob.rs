//! Patterns with `*` for names.

/// Whether `pattern` matches the whole of `text`. A `*` stands for any letters but `/`, also none; every other
/// letter stands for itself.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    // Where the last `*` was, and how far it has reached.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, text) {
            ([], []) => return true,
            ([b'*', rest @ ..], _) => {
                star = Some((rest, text));
                pattern = rest;
                continue;
            }
            ([expected, rest @ ..], [found, further @ ..]) if expected == found => {
                (pattern, text) = (rest, further);
                continue;
            }
            _ => {}
        }
        let Some((after, [swallowed, further @ ..])) = star else { return false };
        if *swallowed == b'/' {
            return false;
        }
        star = Some((after, further));
        (pattern, text) = (after, further);
    }
}

/// Whether one of the patterns matches.
pub(super) fn any(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::matches;

    #[test]
    fn a_star_stays_within_its_segment() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a"),
            ("a*c", "abbc"),
            ("a*b*c", "aXbYbZc"),
            ("/dev/nvidia*", "/dev/nvidia0"),
            ("", ""),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("*", "a/b"), ("a", "ab"), ("a*", "ba"), ("a*c", "abd"), ("/dev/*", "/dev/a/b"), ("", "a")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_without_stars_matches_itself_alone(text in "[a-z/.]{0,8}", other in "[a-z/.]{0,8}") {
            prop_assert_eq!(matches(&text, &other), text == other);
        }

        #[test]
        fn what_a_star_replaces_is_matched(before in "[a-c]{0,4}", middle in "[a-c]{0,4}", after in "[a-c]{0,4}") {
            let pattern = format!("{before}*{after}");
            let whole = format!("{before}{middle}{after}");
            prop_assert!(matches(&pattern, &whole));
        }
    }
}
