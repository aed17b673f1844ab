//! Which images may run.

use super::glob;

/// The registry of references that name none.
const DOCKER_HUB: &str = "docker.io";

/// A pattern of image references: `REGISTRY/PATH[:TAG][@DIGEST]`.
///
/// It is completed as Docker completes a reference: without a registry it is Docker Hub's, and a single name
/// there is in `library/`. In the path `*` stands within a segment, and a segment `**` for any number of
/// segments. A pattern without tag and digest takes every tag and digest of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `**`: every image of every registry, and ids of local images.
    Everything,
    Images {
        registry: String,
        path: Vec<String>,
        tag: Option<String>,
        digest: Option<String>,
    },
}

/// A reference, completed as Docker completes it.
struct Reference<'a> {
    registry: String,
    path: Vec<&'a str>,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl Pattern {
    /// Reads a pattern; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "**" {
            return Ok(Self::Everything);
        }
        let reference = Reference::parse(text);
        if reference.registry.contains('*') {
            return Err("a registry must be named in full, without *".to_owned());
        }
        if reference
            .path
            .iter()
            .any(|segment| segment.is_empty() || (segment.contains("**") && *segment != "**"))
        {
            return Err("** must be a segment of its own, and no segment may be empty".to_owned());
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("it must not contain spaces".to_owned());
        }
        let explicit = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self::Images {
            registry: reference.registry,
            path: reference.path.into_iter().map(str::to_owned).collect(),
            tag: explicit(reference.tag),
            digest: explicit(reference.digest),
        })
    }

    /// Whether an image may run by this pattern.
    pub(super) fn matches(&self, image: &str) -> bool {
        let Self::Images { registry, path, tag, digest } = self else { return true };
        if may_be_id(image) {
            return false;
        }
        let reference = Reference::parse(image);
        // With a digest the engine does not look at the tag: a tag then says nothing about what runs.
        let tag_fits = match (tag, reference.digest) {
            (None, _) => true,
            (Some(_), Some(_)) => digest.is_some() && tag.as_deref() == reference.tag,
            (Some(tag), None) => glob::matches(tag, reference.tag.unwrap_or("latest")),
        };
        let digest_fits = digest.as_deref().is_none_or(|digest| reference.digest == Some(digest));
        *registry == reference.registry && segments_match(path, &reference.path) && tag_fits && digest_fits
    }
}

impl<'a> Reference<'a> {
    fn parse(text: &'a str) -> Self {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            // A colon before the last slash is a registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DOCKER_HUB, name),
        };
        let registry = match registry.to_ascii_lowercase().as_str() {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
            other => other.to_owned(),
        };
        let mut path: Vec<&str> = path.split('/').collect();
        if registry == DOCKER_HUB && path.len() == 1 && path != ["**"] {
            path.insert(0, "library");
        }
        Self { registry, path, tag, digest }
    }
}

/// Whether the engine may take it for the id of a local image, whatever that is.
fn may_be_id(image: &str) -> bool {
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn segments_match(pattern: &[String], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        ([first, rest @ ..], _) if first == "**" => {
            (0..=path.len()).any(|skipped| segments_match(rest, path.get(skipped..).unwrap_or_default()))
        }
        ([first, rest @ ..], [segment, further @ ..]) => {
            glob::matches(first, segment) && segments_match(rest, further)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, image: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(image)
    }

    #[test]
    fn a_pattern_takes_what_docker_would_take_for_the_same() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = format!("ghcr.io/team/app@{digest}");
        for (pattern, image) in [
            ("alpine", "alpine"),
            ("alpine", "docker.io/library/alpine:3.20"),
            ("docker.io/library/alpine", "alpine:latest"),
            ("docker.io/library/alpine", "index.docker.io/library/alpine"),
            ("alpine:latest", "alpine"),
            ("alpine:3.*", "alpine:3.20"),
            ("prefecthq/*", "prefecthq/prefect:3-latest"),
            ("ghcr.io/team/*", "ghcr.io/team/app:1"),
            ("ghcr.io/team/*", &pinned),
            ("ghcr.io/team/**", "ghcr.io/team/a/b/c"),
            ("ghcr.io/**/app", "ghcr.io/app"),
            ("GHCR.io/team/app", "ghcr.IO/team/app"),
            ("localhost:5000/a", "localhost:5000/a:1"),
            (&pinned, &pinned),
            (&pinned, &format!("ghcr.io/team/app:1@{digest}")),
            ("docker.io/**", "alpine"),
            ("**", "anything.example:5/x/y@sha256:1"),
            ("**", "3f5ef"),
        ] {
            assert!(matches(pattern, image), "{pattern} {image}");
        }
    }

    #[test]
    fn a_pattern_takes_nothing_that_only_looks_like_it() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (pattern, image) in [
            ("alpine", "evil.example/alpine"),
            ("alpine", "other/alpine"),
            ("alpine", "alpine/alpine"),
            ("alpine", "alpine2"),
            ("ghcr.io/team/*", "ghcr.io/team/a/b"),
            ("ghcr.io/team/*", "ghcr.io/team"),
            ("ghcr.io/team/*", "ghcr.io.evil.example/team/app"),
            ("ghcr.io/team/*", "evil.example/ghcr.io/team/app"),
            ("ghcr.io/team/app", "ghcr.io/team/app-evil"),
            ("localhost/a", "localhost:5000/a"),
            ("alpine:3.20", "alpine"),
            ("alpine:3.20", "alpine:3.21"),
            ("alpine:3.20", &format!("alpine:3.20@{digest}")),
            (&format!("alpine@{digest}"), "alpine"),
            (&format!("alpine@{digest}"), "alpine@sha256:b"),
            // What may be the id of any local image is taken by ** alone.
            ("docker.io/library/*", "cafe"),
            ("sha256", "sha256:cafe"),
            ("docker.io/**", &"a".repeat(64)),
        ] {
            assert!(!matches(pattern, image), "{pattern} {image}");
        }
    }

    #[test]
    fn patterns_without_sense_are_refused() {
        for bad in ["*.example/x", "a//b", "ghcr.io/a**", "a b", "", "ghcr.io/"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
