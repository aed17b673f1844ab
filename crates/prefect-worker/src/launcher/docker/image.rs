//! Image references and when to pull.

use super::super::LaunchError;

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullPolicy {
    /// If the engine does not have it.
    IfNotPresent,
    /// Before every run.
    Always,
    /// Before every run, but a local image will do if that fails.
    IfPossible,
    /// Not at all.
    Never,
}

impl PullPolicy {
    pub(super) fn parse(text: &str) -> Result<Self, LaunchError> {
        Ok(match text {
            "IfNotPresent" => Self::IfNotPresent,
            "Always" => Self::Always,
            "IfPossible" => Self::IfPossible,
            "Never" => Self::Never,
            other => {
                let message = format!(
                    "image_pull_policy must be IfNotPresent, Always, IfPossible or Never, but it is {other:?}"
                );
                return Err(LaunchError::Configuration { message });
            }
        })
    }

    /// The policy for an image that comes without one.
    pub(super) fn default_for(image: &str) -> Self {
        match split(image).1 {
            None | Some("latest") => Self::Always,
            Some(_) => Self::IfNotPresent,
        }
    }
}

/// Repository and tag (or digest) of an image reference.
pub(super) fn split(image: &str) -> (&str, Option<&str>) {
    if let Some((repository, digest)) = image.split_once('@') {
        return (repository, Some(digest));
    }
    match image.rsplit_once(':') {
        // A colon before the last slash is a registry's port.
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (image, None),
    }
}

/// Host of the registry that an image comes from.
pub(super) fn registry(image: &str) -> &str {
    match split(image).0.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DOCKER_HUB,
    }
}

const DOCKER_HUB: &str = "docker.io";

/// Whether credentials for `registry_url` are meant for the registry of `image`: they go nowhere else.
pub(super) fn credentials_apply(registry_url: &str, image: &str) -> bool {
    let host = registry_url.split_once("://").map_or(registry_url, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let host =
        if matches!(host, "" | "index.docker.io" | "registry-1.docker.io") { DOCKER_HUB } else { host };
    host == registry(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_split_into_repository_and_tag() {
        for (image, expected) in [
            ("prefecthq/prefect:3-latest", ("prefecthq/prefect", Some("3-latest"))),
            ("host:5050/folder/sub:tag", ("host:5050/folder/sub", Some("tag"))),
            ("host:5050/folder/sub", ("host:5050/folder/sub", None)),
            ("p/x@sha256:abc", ("p/x", Some("sha256:abc"))),
            ("plain", ("plain", None)),
        ] {
            assert_eq!(split(image), expected);
        }
    }

    #[test]
    fn the_default_policy_pulls_what_may_have_moved() {
        for (image, policy) in [
            ("a/b", PullPolicy::Always),
            ("a/b:latest", PullPolicy::Always),
            ("a/b:1", PullPolicy::IfNotPresent),
            ("h:1/a/b", PullPolicy::Always),
            ("a@sha256:1", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(PullPolicy::default_for(image), policy, "{image}");
        }
        assert!(PullPolicy::parse("Sometimes").unwrap_err().to_string().contains("Sometimes"));
    }

    #[test]
    fn credentials_go_to_their_own_registry_only() {
        assert!(credentials_apply("ghcr.io", "ghcr.io/a/b:1"));
        assert!(credentials_apply("https://ghcr.io/v2/", "ghcr.io/a/b:1"));
        assert!(credentials_apply("index.docker.io", "a/b"));
        assert!(credentials_apply("https://index.docker.io/v1/", "library"));
        assert!(!credentials_apply("ghcr.io", "evil.example/a/b"));
        assert!(!credentials_apply("ghcr.io", "a/b"));
    }
}
