//! Makes images available: what is there, what the policy says, what a pull brings.

use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::ImageInspect;
use bollard::query_parameters::InspectContainerOptions;

use super::super::{LaunchError, Notes};
use super::config::DockerConfig;
use super::image::PullPolicy;
use super::pull::{Pulled, Request};
use super::{DockerLauncher, credentials, image};

impl DockerLauncher {
    /// Makes the image of a job available, as its pull policy says, notes what it is, and records its use.
    pub(super) async fn supply_image(
        &self,
        config: &DockerConfig,
        platform: &str,
        notes: &dyn Notes,
    ) -> Result<(), LaunchError> {
        let local = self.find_image(&config.image).await?;
        let former = local.as_ref().and_then(|local| local.id.as_deref());
        if !self.pull_if_wanted(config, platform, local.as_ref(), notes).await? {
            if let Some(former) = former {
                self.uses.note(&self.engine, former, None).await;
            }
            return Ok(());
        }
        // The pull has succeeded, whatever comes of this.
        let pulled = self.find_image(&config.image).await.ok().flatten().and_then(|image| image.id);
        if let Some(pulled) = pulled {
            // What was here before the pull is not known to have come from one.
            let brought = (former != Some(pulled.as_str())).then_some(config.image.as_str());
            self.uses.note(&self.engine, &pulled, brought).await;
        }
        Ok(())
    }

    /// Tells whether it pulled; else the local image, if there is one, is to be used.
    async fn pull_if_wanted(
        &self,
        config: &DockerConfig,
        platform: &str,
        local: Option<&ImageInspect>,
        notes: &dyn Notes,
    ) -> Result<bool, LaunchError> {
        let usable = local.is_some_and(|local| is_for(local, platform));
        match config.pull_policy {
            PullPolicy::Never => {}
            PullPolicy::IfNotPresent if usable => {}
            PullPolicy::Always | PullPolicy::IfNotPresent => {
                self.pull(config, platform, true, notes).await?;
                return Ok(true);
            }
            // Where a local image will do, nobody waits for a registry to recover.
            PullPolicy::IfPossible => match self.pull(config, platform, !usable, notes).await {
                Ok(()) => return Ok(true),
                Err(error @ LaunchError::Unreachable { .. }) => return Err(error),
                Err(error) if usable => {
                    tracing::warn!(image = config.image, %error, "pull failed, using the local image");
                    notes.note(&format!("Failed to {error}; using the image that is here"));
                }
                Err(error) => {
                    return Err(LaunchError::Image {
                        image: config.image.clone(),
                        message: format!("it is not here, and pulling it failed: {error}"),
                    });
                }
            },
        }
        if let Some(local) = local {
            notes.note(&format!("Image {} is {}", config.image, identity(local, &config.image)));
        }
        Ok(false)
    }

    async fn pull(
        &self,
        config: &DockerConfig,
        platform: &str,
        patient: bool,
        notes: &dyn Notes,
    ) -> Result<(), LaunchError> {
        let own = config.credentials.as_ref();
        let (login, warning) = credentials::choose(own, &self.keyring, &config.image).await;
        if let Some(warning) = warning {
            tracing::warn!(image = config.image, "{warning}");
            notes.note(&format!("Pulling image {}: {warning}", config.image));
        }
        let image = config.image.clone();
        let request = Request { image: image.clone(), platform: platform.to_owned(), login, patient };
        let pull = self.pulls.pull(&self.engine, request, notes);
        let pulled = match config.pull_timeout {
            None => pull.await,
            Some(most) => tokio::time::timeout(most, pull)
                .await
                .map_err(|_| LaunchError::Deadline { action: "pull the image", seconds: most.as_secs() })?,
        };
        let Pulled { digest, up_to_date, duration } =
            pulled.map_err(|error| error.into_launch_error(&self.engine, &image))?;
        let digest = digest.unwrap_or_else(|| "of an unknown digest".to_owned());
        notes.note(&if up_to_date {
            format!("Image {image} is up to date: {digest}")
        } else {
            format!("Pulled image {image} in {:.1} s: {digest}", duration.as_secs_f64())
        });
        Ok(())
    }

    pub(super) async fn find_image(&self, image: &str) -> Result<Option<ImageInspect>, LaunchError> {
        match self.engine.docker.inspect_image(image).await {
            Ok(found) => Ok(Some(found)),
            Err(Refused { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.engine.error("inspect the image", error)),
        }
    }

    /// The digest under which a registry knows the image, if it comes from one.
    pub(super) async fn image_digest(&self, image: &str) -> Result<Option<String>, LaunchError> {
        let found = self.find_image(image).await?;
        Ok(found.and_then(|found| repository_digest(&found, image).map(str::to_owned)))
    }

    /// Adds to the engine's words which architectures do not go together.
    pub(super) async fn with_architecture(&self, container: &str, message: String) -> String {
        let docker = &self.engine.docker;
        let inspected = docker.inspect_container(container, None::<InspectContainerOptions>).await;
        let Some(image) = inspected.ok().and_then(|container| container.image) else { return message };
        let found = docker.inspect_image(&image).await.ok().and_then(|image| image.architecture);
        match found.filter(|architecture| !architecture.is_empty()) {
            Some(architecture) => {
                format!(
                    "{message} (the image is for {architecture}, the engine runs {})",
                    self.engine.architecture
                )
            }
            None => message,
        }
    }
}

/// Whether an image is for a platform such as `linux/arm64/v8`, `linux` or `arm64`, as far as either says.
pub(super) fn is_for(image: &ImageInspect, platform: &str) -> bool {
    let mut wanted = platform.split('/').filter(|part| !part.is_empty()).map(architecture);
    let own = [&image.os, &image.architecture, &image.variant];
    // A single word may be an architecture.
    let skipped = usize::from(!platform.contains('/') && !matches!(platform, "linux" | "windows"));
    own.into_iter().skip(skipped).all(|own| match (wanted.next(), own.as_deref()) {
        (Some(wanted), Some(own)) if !own.is_empty() => wanted.eq_ignore_ascii_case(own),
        _ => true,
    })
}

/// The engine's word for what others call otherwise.
fn architecture(word: &str) -> &str {
    match word {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        word => word,
    }
}

/// What an image is beyond all names: its digest in the registry, else the engine's own id of it.
pub(super) fn identity(image: &ImageInspect, reference: &str) -> String {
    match repository_digest(image, reference) {
        Some(digest) => digest.to_owned(),
        None => format!("{} (not from a registry)", image.id.as_deref().unwrap_or("of an unknown id")),
    }
}

fn repository_digest<'a>(image: &'a ImageInspect, reference: &str) -> Option<&'a str> {
    let mut digests = image.repo_digests.as_deref()?.iter().filter_map(|digest| digest.split_once('@'));
    let repository = image::split(reference).0;
    digests.find(|(of, _)| image::same_repository(of, repository)).map(|(_, digest)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(os: &str, architecture: &str, variant: Option<&str>) -> ImageInspect {
        ImageInspect {
            id: Some("sha256:id".to_owned()),
            os: Some(os.to_owned()),
            architecture: Some(architecture.to_owned()),
            variant: variant.map(str::to_owned),
            repo_digests: Some(vec![
                "prefecthq/prefect@sha256:hub".to_owned(),
                "r:1/a@sha256:own".to_owned(),
            ]),
            ..Default::default()
        }
    }

    #[test]
    fn an_image_of_another_platform_is_not_what_is_wanted() {
        let arm = image("linux", "arm64", Some("v8"));
        for (platform, fits) in [
            ("", true),
            ("linux", true),
            ("arm64", true),
            ("linux/arm64", true),
            ("linux/aarch64", true),
            ("linux/arm64/v8", true),
            ("linux/amd64", false),
            ("amd64", false),
        ] {
            assert_eq!(is_for(&arm, platform), fits, "{platform}");
        }
        assert!(is_for(&image("linux", "arm64", None), "linux/arm64/v8"), "most images name no variant");
    }

    #[test]
    fn an_image_is_known_by_the_digest_of_its_own_repository() {
        let image = image("linux", "amd64", None);
        for (reference, identified) in [
            ("r:1/a:tag", "sha256:own"),
            ("prefecthq/prefect:3", "sha256:hub"),
            ("docker.io/prefecthq/prefect", "sha256:hub"),
            ("other:1", "sha256:id (not from a registry)"),
        ] {
            assert_eq!(identity(&image, reference), identified);
        }
    }
}
