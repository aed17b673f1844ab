//! What runs have left on an engine, and its removal: never by force, so that the engine refuses what is in use.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptions, ListImagesOptions, RemoveContainerOptions,
};
use jiff::Timestamp;

use super::super::{LaunchError, Phase};
use super::engine::Engine;
use super::labels::{self, Purpose};
use super::phase;

/// A container that a worker of this project has made.
#[derive(Debug, Clone)]
pub(crate) struct Leftover {
    /// The engine's id of it.
    pub(crate) id: String,
    pub(crate) name: String,
    /// Name of the work pool it was made for.
    pub(crate) pool: String,
    pub(crate) purpose: Purpose,
    pub(crate) phase: Phase,
    /// The engine's word for that: `exited`.
    pub(crate) state: String,
    /// When it ended; when it was made, if it has not.
    pub(crate) since: Timestamp,
    /// Bytes that it has written, if it does not run.
    pub(crate) size: Option<u64>,
}

/// What came of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Removal {
    Removed,
    /// Somebody was faster.
    Gone,
    /// It is in use, in the engine's words.
    Refused(String),
}

/// An engine on which something may have been left.
#[derive(Debug)]
pub(crate) struct Leftovers {
    pub(super) engine: Engine,
}

impl Leftovers {
    /// Connects to the engine, as [`DockerLauncher::connect`](super::DockerLauncher::connect) does.
    ///
    /// # Errors
    /// A variable cannot be used, there is no engine, or it does not answer.
    pub(crate) async fn connect(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        Ok(Self { engine: Engine::connect(environment).await? })
    }

    /// The containers of ours, of these pools only unless there are none.
    pub(crate) async fn containers(&self, pools: &[String]) -> Result<Vec<Leftover>, LaunchError> {
        let filters = Some(labels::of_any_pool());
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let listed = self.engine.docker.list_containers(Some(options)).await;
        let listed = listed.map_err(|error| self.engine.error("list containers", error))?;
        let inherited = self.labels_of_images().await?;
        let mut leftovers = Vec::new();
        for container in listed {
            let image = container.image_id.as_ref().and_then(|image| inherited.get(image));
            let own = container.labels.as_ref();
            let ours = own.and_then(|own| labels::purpose(own, image.unwrap_or(&HashMap::new())));
            let Some((purpose, pool)) = ours else { continue };
            if pools.is_empty() || pools.contains(&pool) {
                leftovers.extend(self.look(container, purpose, pool).await?);
            }
        }
        leftovers.sort_by(|one, other| (&one.pool, one.since).cmp(&(&other.pool, other.since)));
        Ok(leftovers)
    }

    /// The labels of those images that bear any of ours: they were made of containers.
    async fn labels_of_images(&self) -> Result<HashMap<String, HashMap<String, String>>, LaunchError> {
        let filters = Some(labels::of_any_pool());
        let options = ListImagesOptions { all: true, filters, ..Default::default() };
        let images = self.engine.docker.list_images(Some(options)).await;
        let images = images.map_err(|error| self.engine.error("list images", error))?;
        Ok(images.into_iter().map(|image| (image.id, image.labels)).collect())
    }

    /// A closer look at a container; `None` if it is gone, or not understood.
    async fn look(
        &self,
        container: ContainerSummary,
        purpose: Purpose,
        pool: String,
    ) -> Result<Option<Leftover>, LaunchError> {
        let made = container.created.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let (Some(id), Some(state), Some(made)) = (container.id, container.state, made) else {
            return Ok(None);
        };
        let names = container.names.unwrap_or_default();
        let name = names.first().map_or("", |name| name.trim_start_matches('/')).to_owned();
        let phase = phase(state);
        let mut leftover =
            Leftover { id, name, pool, purpose, phase, state: state.to_string(), since: made, size: None };
        if phase == Phase::Running {
            return Ok(Some(leftover));
        }
        // Only now: the size of what a container has written is found by reading all of it.
        let options = InspectContainerOptions { size: true };
        match self.engine.docker.inspect_container(&leftover.id, Some(options)).await {
            Ok(inspected) => {
                if phase == Phase::Ended {
                    let Some(end) = end(&inspected) else { return Ok(None) };
                    leftover.since = end.max(made);
                }
                leftover.size = inspected.size_rw.and_then(|size| u64::try_from(size).ok());
                Ok(Some(leftover))
            }
            Err(Refused { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.engine.error("inspect the container", error)),
        }
    }

    /// Removes a container that does not run, and its anonymous volumes.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<Removal, LaunchError> {
        let options = RemoveContainerOptions { v: true, force: false, link: false };
        let removed = self.engine.docker.remove_container(id, Some(options)).await;
        self.removal("remove the container", removed)
    }

    /// What the answer to a removal means.
    pub(super) fn removal(
        &self,
        action: &'static str,
        answer: Result<(), Error>,
    ) -> Result<Removal, LaunchError> {
        match answer {
            Ok(()) => Ok(Removal::Removed),
            Err(Refused { status_code: 404, .. }) => Ok(Removal::Gone),
            Err(Refused { status_code: 409, message }) if message.contains("already in progress") => {
                Ok(Removal::Gone)
            }
            Err(Refused { status_code: 409, message }) => Ok(Removal::Refused(message)),
            Err(error) => Err(self.engine.error(action, error)),
        }
    }
}

/// When a container ended.
fn end(container: &ContainerInspectResponse) -> Option<Timestamp> {
    container.state.as_ref()?.finished_at.as_ref()?.parse().ok()
}
