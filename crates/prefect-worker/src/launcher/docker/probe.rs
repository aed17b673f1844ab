//! A look at directories of the engine's host from inside a container that lives for a moment.
//!
//! The engine refuses a mount of type `bind` whose source does not exist, before anything runs: that needs no
//! program. What the others are is told by a `prefect-worker` in the container.

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountBindOptions, MountType};
use bollard::query_parameters::{CreateContainerOptions, ListContainersOptions, StartContainerOptions};
use jiff::Timestamp;

use super::super::{LaunchError, Outcome};
use super::{DockerLauncher, watch};

/// Label of the containers that look.
const PROBE: &str = "io.ferryman.mount-probe";
/// How long a container may look: a share whose server is away answers never.
const DEADLINE: Duration = Duration::from_secs(30);
/// What is older than this, in seconds, was left behind by a probe that was killed.
const LEFT_BEHIND: i64 = 300;
/// The engine's words for a source that does not exist; the path follows.
const MISSING: &str = "bind source path does not exist: ";

/// What a probe found.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    /// Sources that do not exist on the host.
    pub(crate) missing: Vec<String>,
    /// What the program in the container wrote, a line each.
    pub(crate) lines: Vec<String>,
}

/// What a container is to look at.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    /// The image whose program looks.
    pub(crate) image: &'a str,
    /// Its command line for these directories of the container.
    pub(crate) command: fn(&[String]) -> Vec<String>,
    /// Paths of the host, with the directories of the container where they appear.
    pub(crate) sources: Vec<(String, String)>,
}

impl DockerLauncher {
    /// Mounts the sources read-only into a container without network and lets its program look at them.
    pub(crate) async fn probe(&self, order: Order<'_>) -> Result<Probed, LaunchError> {
        self.remove_old_probes().await?;
        let mut probed = Probed::default();
        let mut sources = order.sources.clone();
        let container = loop {
            let body = body(&order, &sources);
            match self.docker().create_container(None::<CreateContainerOptions>, body).await {
                Ok(created) => break created.id,
                Err(Refused { status_code: 400, message }) if message.contains(MISSING) => {
                    let path = message.rsplit_once(MISSING).map_or("", |(_, path)| path).trim();
                    let known = sources.len();
                    sources.retain(|(source, _)| source.trim_end_matches('/') != path.trim_end_matches('/'));
                    if sources.len() == known {
                        return Err(LaunchError::Engine { action: "create the probe", message });
                    }
                    probed.missing.push(path.to_owned());
                }
                Err(error) => return Err(self.engine.step_error("create the probe", error)),
            }
        };
        let looked = tokio::time::timeout(DEADLINE, self.look(&container, sources.len())).await;
        self.remove(&container).await?;
        let deadline = LaunchError::Deadline { action: "look at the mounts", seconds: DEADLINE.as_secs() };
        probed.lines = looked.unwrap_or(Err(deadline))?;
        Ok(probed)
    }

    async fn look(&self, container: &str, sources: usize) -> Result<Vec<String>, LaunchError> {
        let started = self.docker().start_container(container, None::<StartContainerOptions>).await;
        started.map_err(|error| self.engine.step_error("start the probe", error))?;
        let outcome = watch::until_end(&self.engine, container, None).await;
        let lines = watch::tail(&self.engine, container, sources.max(1)).await;
        match outcome {
            Outcome::Exited { code: 0, .. } => Ok(lines),
            outcome => Err(LaunchError::Engine {
                action: "look at the mounts",
                message: format!("the probe ended with {:?}: {}", outcome.code(), lines.join(" ")),
            }),
        }
    }

    /// A probe that was interrupted could not remove its container.
    async fn remove_old_probes(&self) -> Result<(), LaunchError> {
        let filters = Some(HashMap::from([("label".to_owned(), vec![PROBE.to_owned()])]));
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let found = self.docker().list_containers(Some(options)).await;
        let now = Timestamp::now().as_second();
        for probe in found.map_err(|error| self.engine.error("list containers", error))? {
            if let Some(id) = probe.id.filter(|_| probe.created.is_some_and(|at| now - at > LEFT_BEHIND)) {
                self.remove(&id).await?;
            }
        }
        Ok(())
    }
}

fn body(order: &Order<'_>, sources: &[(String, String)]) -> ContainerCreateBody {
    let targets: Vec<String> = sources.iter().map(|(_, target)| target.clone()).collect();
    let mut command = (order.command)(&targets).into_iter();
    let mounts = sources.iter().map(|(source, target)| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.clone()),
        target: Some(target.clone()),
        read_only: Some(true),
        bind_options: Some(MountBindOptions { non_recursive: Some(true), ..Default::default() }),
        ..Default::default()
    });
    let text = |text: &str| Some(vec![text.to_owned()]);
    ContainerCreateBody {
        image: Some(order.image.to_owned()),
        entrypoint: Some(command.by_ref().take(1).collect()),
        cmd: Some(command.collect()),
        // Whoever may list any directory, and nothing else.
        user: Some("0:0".to_owned()),
        labels: Some(HashMap::from([(PROBE.to_owned(), "true".to_owned())])),
        host_config: Some(HostConfig {
            mounts: Some(mounts.collect()),
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            cap_drop: text("ALL"),
            cap_add: text("DAC_READ_SEARCH"),
            security_opt: text("no-new-privileges"),
            ..Default::default()
        }),
        ..Default::default()
    }
}
