//! Image references and when to pull.

use super::super::LaunchError;

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PullPolicy {
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
    pub(crate) fn parse(text: &str) -> Result<Self, LaunchError> {
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
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => registry_host(host),
        _ => DOCKER_HUB,
    }
}

/// Whether two repositories are one: the Docker Hub's go without its name, and official ones without `library`.
pub(super) fn same_repository(one: &str, other: &str) -> bool {
    fn short(repository: &str) -> &str {
        let path = match repository.split_once('/') {
            Some((host, path)) if host.contains('.') && registry_host(host) == DOCKER_HUB => path,
            _ => repository,
        };
        path.strip_prefix("library/").unwrap_or(path)
    }
    short(one) == short(other)
}

/// The registry of images whose reference names none.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// Host of the registry that an address means: credentials are stored under names and URLs of all kinds.
pub(super) fn registry_host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        host => host,
    }
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
    fn all_names_of_a_registry_mean_it() {
        for (address, host) in [
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io/v2/", "ghcr.io"),
            ("index.docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry.example:5000", "registry.example:5000"),
        ] {
            assert_eq!(registry_host(address), host);
        }
        for (image, host) in [
            ("a/b", "docker.io"),
            ("library", "docker.io"),
            ("ghcr.io/a/b:1", "ghcr.io"),
            ("evil.example/a/b", "evil.example"),
            ("index.docker.io/a/b", "docker.io"),
            ("localhost/a", "localhost"),
        ] {
            assert_eq!(registry(image), host);
        }
    }
}
