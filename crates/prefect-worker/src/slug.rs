//! Names that servers and engines accept.

/// `text` in characters that `allowed` admits: every other stretch becomes one dash, none at either end.
///
/// Latin letters lose their accents, as Python's `slugify` does; other scripts become dashes.
pub(crate) fn slug(text: &str, allowed: impl Fn(char) -> bool) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        match transliterate(c) {
            Some(ascii) => slug.push_str(ascii),
            None if allowed(c) && c != '-' => slug.push(c),
            None if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            None => {}
        }
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

fn transliterate(c: char) -> Option<&'static str> {
    Some(match c {
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' => "a",
        'À' | 'Á' | 'Â' | 'Ã' | 'Ä' | 'Å' => "A",
        'ç' => "c",
        'Ç' => "C",
        'è' | 'é' | 'ê' | 'ë' => "e",
        'È' | 'É' | 'Ê' | 'Ë' => "E",
        'ì' | 'í' | 'î' | 'ï' => "i",
        'Ì' | 'Í' | 'Î' | 'Ï' => "I",
        'ñ' => "n",
        'Ñ' => "N",
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' => "o",
        'Ò' | 'Ó' | 'Ô' | 'Õ' | 'Ö' | 'Ø' => "O",
        'ù' | 'ú' | 'û' | 'ü' => "u",
        'Ù' | 'Ú' | 'Û' | 'Ü' => "U",
        'ß' => "ss",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_keep_what_docker_allows() {
        for (name, expected) in [
            ("cobalt-cuscus", "cobalt-cuscus"),
            ("Archive run 3/4: Zürich", "Archive-run-3-4-Zurich"),
            ("__.-x_y.z", "x_y.z"),
            ("a -- b", "a-b"),
            ("end!", "end"),
        ] {
            assert_eq!(container_name(name).as_deref(), Some(expected));
        }
        assert_eq!(container_name("…"), None);
        assert_eq!(container_name(&"x".repeat(300)).map(|name| name.len()), Some(250));
    }

    #[test]
    fn resource_slugs_are_lower_case() {
        assert_eq!(resource_slug("Wire Docker_1"), "wire-docker-1");
    }
}
