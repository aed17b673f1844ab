//! What a job needs of its engine, and what the engine has of it: for those who look before anything runs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::{ContainerCreateBody, MountType};
use bollard::query_parameters::{InspectContainerOptions, InspectNetworkOptions};
use jiff::Timestamp;

use super::super::{Job, LaunchError};
use super::config::DockerConfig;
use super::container::{self, Plan};
use super::image::{self, PullPolicy};
use super::{DockerLauncher, supply};

/// Network modes that are no names of networks.
const MODES: [&str; 4] = ["default", "bridge", "host", "none"];

/// What the engine says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Where it is, as `DOCKER_HOST` names it.
    pub(crate) address: String,
    pub(crate) version: String,
    /// The version of the API that is spoken.
    pub(crate) api: String,
    /// The name of the machine that it runs on.
    pub(crate) host: String,
    /// Where it keeps its files there.
    pub(crate) directory: PathBuf,
    /// That machine's clock.
    pub(crate) time: Option<Timestamp>,
    /// The engine's own warnings, such as that it cannot limit memory.
    pub(crate) warnings: Vec<String>,
}

/// What a job needs.
#[derive(Debug, Clone)]
pub(crate) struct Needs {
    pub(crate) image: ImageNeed,
    /// Networks that have to be there.
    pub(crate) networks: BTreeSet<String>,
    /// Files and directories of the engine's host.
    pub(crate) binds: BTreeSet<String>,
    /// Volumes under a name.
    pub(crate) volumes: BTreeSet<String>,
    /// Keys of the job configuration that mean nothing here.
    pub(crate) ignored: Vec<String>,
}

/// An image that a job needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ImageNeed {
    pub(crate) reference: String,
    /// `os[/architecture[/variant]]`; empty if any will do.
    pub(crate) platform: String,
    pub(crate) pull_policy: PullPolicy,
}

impl ImageNeed {
    /// Host of the registry that it comes from.
    pub(crate) fn registry(&self) -> &str {
        image::registry(&self.reference)
    }
}

/// What the engine has of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    /// One of another platform.
    OtherPlatform,
    /// It, by its digest or id.
    Here(String),
}

impl DockerLauncher {
    /// What the engine says about itself now.
    pub(crate) async fn facts(&self) -> Result<Facts, LaunchError> {
        let failed = |error| self.engine.error("ask the engine", error);
        let version = self.docker().version().await.map_err(failed)?;
        let info = self.docker().info().await.map_err(failed)?;
        Ok(Facts {
            address: self.engine.address.host.clone(),
            version: version.version.unwrap_or_default(),
            api: self.docker().client_version().to_string(),
            host: info.name.unwrap_or_default(),
            directory: info.docker_root_dir.unwrap_or_default().into(),
            time: info.system_time.and_then(|time| time.parse().ok()),
            warnings: info.warnings.unwrap_or_default(),
        })
    }

    /// What a job needs, if its configuration is right and the policy allows it.
    pub(crate) async fn needs(&self, job: &Job) -> Result<Needs, LaunchError> {
        let config = DockerConfig::parse(&job.configuration)?;
        let mut plan = container::plan(job, &config, self.engine.host_gateway)?;
        match self.permit_creation(&mut plan).await {
            // The user of an image that is not here yet is judged when it has come.
            Err(LaunchError::Image { .. }) => self.permit(&mut plan, None)?,
            judged => judged?,
        }
        let (binds, volumes) = sources(&plan.body);
        Ok(Needs {
            networks: networks(&plan),
            image: ImageNeed {
                reference: config.image,
                platform: plan.platform,
                pull_policy: config.pull_policy,
            },
            binds,
            volumes,
            ignored: config.ignored,
        })
    }

    /// What the engine has of an image.
    pub(crate) async fn presence(&self, need: &ImageNeed) -> Result<Presence, LaunchError> {
        Ok(match self.find_image(&need.reference).await? {
            None => Presence::Absent,
            Some(found) if !supply::is_for(&found, &need.platform) => Presence::OtherPlatform,
            Some(found) => Presence::Here(supply::identity(&found, &need.reference)),
        })
    }

    /// Whether the engine has a network.
    pub(crate) async fn has_network(&self, name: &str) -> Result<bool, LaunchError> {
        match self.docker().inspect_network(name, None::<InspectNetworkOptions>).await {
            Ok(_) => Ok(true),
            Err(Refused { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(self.engine.error("inspect the network", error)),
        }
    }

    /// Whether the engine has a volume.
    pub(crate) async fn has_volume(&self, name: &str) -> Result<bool, LaunchError> {
        match self.docker().inspect_volume(name).await {
            Ok(_) => Ok(true),
            Err(Refused { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(self.engine.error("inspect the volume", error)),
        }
    }

    /// The image of a container; `None` if the engine has no such container.
    pub(crate) async fn image_of(&self, container: &str) -> Result<Option<String>, LaunchError> {
        match self.docker().inspect_container(container, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(found.image),
            Err(Refused { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.engine.error("inspect the container", error)),
        }
    }
}

fn networks(plan: &Plan) -> BTreeSet<String> {
    let mode = plan.body.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
    let named = mode.filter(|mode| !MODES.contains(mode) && !mode.contains(':') && !mode.is_empty());
    named.map(str::to_owned).into_iter().chain(plan.further_networks.iter().cloned()).collect()
}

/// The binds of a container, and the volumes that have a name.
fn sources(body: &ContainerCreateBody) -> (BTreeSet<String>, BTreeSet<String>) {
    let Some(host) = &body.host_config else { return Default::default() };
    let of_binds = host.binds.iter().flatten().filter_map(|bind| bind.split_once(':')).map(|(from, _)| from);
    let of_mounts = host
        .mounts
        .iter()
        .flatten()
        .filter(|mount| matches!(mount.typ, Some(MountType::BIND | MountType::VOLUME)))
        .filter_map(|mount| mount.source.as_deref())
        .filter(|source| !source.is_empty());
    of_binds.chain(of_mounts).map(str::to_owned).partition(|source| source.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn binds_and_named_volumes_are_found_in_all_their_forms() {
        let body = serde_json::from_value(json!({"HostConfig": {
            "Binds": ["/a:/b:ro", "named:/c", "/anonymous"],
            "Mounts": [
                {"Type": "bind", "Source": "/d", "Target": "/e"}, {"Type": "volume", "Source": "other", "Target": "/f"},
                {"Type": "volume", "Target": "/g"}, {"Type": "tmpfs", "Target": "/h"},
            ],
        }}));
        let (binds, volumes) = sources(&body.unwrap());
        assert_eq!(binds.into_iter().collect::<Vec<_>>(), ["/a", "/d"]);
        assert_eq!(volumes.into_iter().collect::<Vec<_>>(), ["named", "other"]);
    }
}
