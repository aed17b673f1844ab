//! Names that servers and engines accept.

use deunicode::deunicode_char;

/// `text` in characters that `allowed` admits: every other stretch becomes one dash, none at either end.
///
/// As Python's `slugify` does it: letters of other scripts are transliterated, apostrophes separate words unless
/// they come from a transliteration, and numbers lose the commas between their digits.
pub(crate) fn slug(text: &str, allowed: impl Fn(char) -> bool) -> String {
    let mut slug = String::new();
    let mut push = |c: char| {
        if allowed(c) && c != '-' {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    };
    let mut previous = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        if c == ',' && digit(previous) && digit(rest.peek().copied()) {
            continue;
        }
        if c.is_ascii() {
            push(c);
        } else {
            deunicode_char(c).unwrap_or(" ").chars().filter(|c| *c != '\'').for_each(&mut push);
        }
        previous = Some(c);
    }
    slug.trim_end_matches('-').to_owned()
}

/// The slug of a worker's name in event resources.
pub(crate) fn resource_slug(name: &str) -> String {
    slug(&name.to_lowercase(), |c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// A container name for `name`, or `None` if nothing of it can be kept.
pub(crate) fn container_name(name: &str) -> Option<String> {
    let slug = slug(name, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    let cut: String = slug.chars().take(250).collect();
    let cut = cut.trim_start_matches(['_', '-', '.']).trim_end_matches('-');
    (!cut.is_empty()).then(|| cut.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_keep_what_docker_allows() {
        for (name, expected) in [
            ("cobalt-cuscus", "cobalt-cuscus"),
            ("Archive run 3/4: Zürich & 1,000 \"files\" it's", "Archive-run-3-4-Zurich-1000-files-it-s"),
            ("Ærøskøbing œuvre Łódź ß İstanbul", "AEroskobing-oeuvre-Lodz-ss-Istanbul"),
            ("данные", "dannye"),
            ("it’s “q”", "its-q"),
            ("x…y", "x...y"),
            ("__.-x_y.z", "x_y.z"),
            ("a -- b", "a-b"),
            ("end!", "end"),
        ] {
            assert_eq!(container_name(name).as_deref(), Some(expected));
        }
        assert_eq!(container_name("…!"), None);
        assert_eq!(container_name(&"x".repeat(300)).map(|name| name.len()), Some(250));
    }

    #[test]
    fn resource_slugs_are_lower_case() {
        assert_eq!(resource_slug("Wire Docker_1"), "wire-docker-1");
    }
}
