//! Containers on a Docker engine, through its socket.

mod address;
mod companion;
mod config;
mod container;
mod credentials;
mod engine;
mod helper;
mod image;
mod image_record;
mod kwargs;
mod labels;
mod leftovers;
mod old_images;
mod options;
pub(crate) mod probe;
mod progress;
mod pull;
mod refusal;
mod secret_files;
pub(crate) mod size;
mod supply;
pub(crate) mod survey;
mod tls;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, NetworkConnectRequest};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptions, StartContainerOptions,
    StopContainerOptions,
};
use prefect_api::work_pool::BaseJobTemplate;
use secrecy::SecretString;

use super::command;
use super::{
    Attempt, Found, Infrastructure, Job, LaunchError, Launcher, Notes, Outcome, OutputSink, Phase, Refusal,
};
use crate::policy::{Policy, Request};
use crate::{redact, status};
use config::DockerConfig;
use container::Plan;
use credentials::Keyring;
use engine::Engine;
pub(crate) use image::PullPolicy;
use image_record::Uses;
pub(crate) use labels::Purpose;
pub(crate) use leftovers::{Leftover, Leftovers, Removal};
pub(crate) use old_images::{PulledImage, Standing};
use pull::Pulls;

/// How long the last output may take to come.
const TAIL_DEADLINE: Duration = Duration::from_secs(10);

/// Launches containers on one Docker engine.
#[derive(Debug)]
pub struct DockerLauncher {
    engine: Engine,
    keyring: Keyring,
    pulls: Pulls,
    uses: Uses,
    /// What the operator of this host lets jobs do; everything without one.
    policy: Option<Policy>,
}

impl DockerLauncher {
    /// Connects to the engine that `DOCKER_HOST` and its fellows name, or to the one at the usual socket.
    ///
    /// # Errors
    /// A variable cannot be used, there is no engine, or it does not answer.
    pub async fn connect(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let engine = Engine::connect(environment).await?;
        let keyring = Keyring::from_environment(environment);
        Ok(Self { engine, keyring, pulls: Pulls::default(), uses: Uses::default(), policy: None })
    }

    /// Lets no job do what the policy does not allow.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        let policy = policy.with_engine(&self.engine.address.host);
        Self { policy: Some(policy), ..self }
    }

    /// Completes a plan as the policy wants it and judges it. `image_user` once the image is there.
    fn permit(&self, plan: &mut Plan, image_user: Option<&str>) -> Result<(), LaunchError> {
        let Some(policy) = &self.policy else { return Ok(()) };
        policy.complete(&mut plan.body);
        policy.judge(Request {
            body: &plan.body,
            further_networks: &plan.further_networks,
            pull_policy: plan.pull_policy,
            image_user,
        })
    }

    /// The user that the image of a container names; empty if it names none.
    async fn image_user(&self, plan: &Plan) -> Result<String, LaunchError> {
        let image = plan.body.image.as_deref().unwrap_or_default();
        let inspected = self.docker().inspect_image(image).await;
        let image = inspected.map_err(|error| self.engine.error("inspect the image", error))?;
        Ok(image.config.and_then(|config| config.user).unwrap_or_default())
    }

    /// The last look before a container is made: nothing is made that was not judged.
    async fn permit_creation(&self, plan: &mut Plan) -> Result<(), LaunchError> {
        if !self.policy.as_ref().is_some_and(|policy| policy.needs_image_user(&plan.body)) {
            return self.permit(plan, None);
        }
        let user = self.image_user(plan).await?;
        self.permit(plan, Some(&user))?;
        // The image may move between this look and the creation; what was judged stays.
        plan.body.user = Some(user).filter(|user| !user.is_empty());
        Ok(())
    }

    fn docker(&self) -> &Docker {
        &self.engine.docker
    }

    /// Removes containers that an earlier attempt for this run made and never started.
    async fn clear_unstarted(&self, job: &Job) -> Result<(), LaunchError> {
        let mut filters = labels::filter(job);
        filters.insert("status".to_owned(), vec!["created".to_owned()]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = self.docker().list_containers(Some(options)).await;
        for container in found.map_err(|error| self.engine.error("list containers", error))? {
            if let Some(id) = container.id {
                self.remove(&id).await?;
            }
        }
        Ok(())
    }

    /// Creates the container under the planned name, or with `-1`, `-2` … after it if the name is taken.
    async fn create_named(&self, plan: &mut Plan) -> Result<Infrastructure, LaunchError> {
        self.permit_creation(plan).await?;
        let mut name = plan.name.clone();
        for index in 1_u32.. {
            let options = CreateContainerOptions { name: name.clone(), platform: plan.platform.clone() };
            match self.docker().create_container(Some(options), plan.body.clone()).await {
                Ok(created) => {
                    let name = name.unwrap_or_else(|| created.id.chars().take(12).collect());
                    return Ok(self.engine.infrastructure(created.id, name));
                }
                Err(Refused { status_code: 409, message }) if message.contains("container name") => {
                    name = plan.name.as_ref().map(|name| format!("{name}-{index}"));
                }
                Err(error) => return Err(self.engine.step_error("create the container", error)),
            }
        }
        Err(LaunchError::Refused {
            action: "create the container",
            refusal: Refusal::NameTaken,
            message: "and so are all names with a number after it".to_owned(),
        })
    }

    /// The engine takes a container for networks that do not exist, and fails when it is to start.
    async fn check_networks(&self, networks: &[String]) -> Result<(), LaunchError> {
        for network in networks {
            if !self.has_network(network).await? {
                let message = format!("networks names {network:?}, which does not exist on this engine");
                return Err(LaunchError::Configuration { message });
            }
        }
        Ok(())
    }

    /// What a container gets between its creation and its start.
    async fn furnish(&self, id: &str, plan: &Plan) -> Result<(), LaunchError> {
        self.connect_networks(id, plan).await?;
        plan.secrets.deliver(&self.engine, id).await
    }

    async fn connect_networks(&self, id: &str, plan: &Plan) -> Result<(), LaunchError> {
        for network in &plan.further_networks {
            let settings = plan.further_endpoints.get(network).cloned();
            let request = NetworkConnectRequest { container: id.to_owned(), endpoint_config: settings };
            let connected = self.docker().connect_network(network, request).await;
            connected.map_err(|error| self.engine.error("connect the container to its networks", error))?;
        }
        Ok(())
    }

    /// What a container in a listing is to us; `None` for those that are not ours.
    fn found(&self, container: ContainerSummary) -> Option<Found> {
        let attempt = labels::attempt(&container.labels?)?;
        let phase = phase(container.state?);
        let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
        let name = name.trim_start_matches('/').to_owned();
        Some(Found { infrastructure: self.engine.infrastructure(container.id?, name), attempt, phase })
    }

    async fn remove(&self, id: &str) -> Result<(), LaunchError> {
        self.engine.remove(id).await
    }
}

#[async_trait]
impl Launcher for DockerLauncher {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn default_template(&self) -> BaseJobTemplate {
        default_template()
    }

    async fn check(&self) -> Result<Option<status::Engine>, LaunchError> {
        let version = self.docker().version().await;
        let version = version.map_err(|error| self.engine.error("ask the engine", error))?;
        let address = self.engine.address.host.clone();
        Ok(Some(status::Engine { address, version: version.version.unwrap_or_default() }))
    }

    fn place(&self) -> &str {
        &self.engine.id
    }

    async fn prepare(&self, job: &Job, notes: &dyn Notes) -> Result<(), LaunchError> {
        let config = DockerConfig::parse(&job.configuration)?;
        let mut plan = container::plan(job, &config, self.engine.host_gateway)?;
        self.permit(&mut plan, None)?;
        if !config.ignored.is_empty() {
            tracing::warn!(flow_run.id = %job.attempt.flow_run_id, keys = ?config.ignored, "unknown keys in the job configuration");
        }
        self.supply_image(&config, &plan.platform, notes).await
    }

    async fn create(&self, job: &Job) -> Result<Infrastructure, LaunchError> {
        let config = DockerConfig::parse(&job.configuration)?;
        let mut plan = container::plan(job, &config, self.engine.host_gateway)?;
        if let Some(digest) = self.image_digest(&config.image).await? {
            plan.body.labels.get_or_insert_default().insert(labels::IMAGE_DIGEST.to_owned(), digest);
        }
        self.check_networks(&config.networks).await?;
        self.clear_unstarted(job).await?;
        let infrastructure = self.create_named(&mut plan).await?;
        if let Err(error) = self.furnish(&infrastructure.id, &plan).await {
            if let Err(removal) = self.remove(&infrastructure.id).await {
                tracing::warn!(container = infrastructure.name, error = %removal, "container was not removed");
            }
            return Err(error);
        }
        Ok(infrastructure)
    }

    async fn start(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError> {
        let started = self.docker().start_container(&infrastructure.id, None::<StartContainerOptions>).await;
        match started {
            Ok(()) | Err(Refused { status_code: 304, .. }) => Ok(()),
            Err(error) => match self.engine.step_error("start the container", error) {
                LaunchError::Refused { action, refusal: refusal @ Refusal::WrongArchitecture, message } => {
                    let message = self.with_architecture(&infrastructure.id, message).await;
                    Err(LaunchError::Refused { action, refusal, message })
                }
                error => Err(error),
            },
        }
    }

    async fn wait(&self, infrastructure: &Infrastructure, output: Option<OutputSink>) -> Outcome {
        watch::until_end(&self.engine, &infrastructure.id, output).await
    }

    async fn list(&self, work_pool: &str) -> Result<Vec<Found>, LaunchError> {
        let filters = Some(labels::of_pool(work_pool));
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let containers = self.docker().list_containers(Some(options)).await;
        let containers = containers.map_err(|error| self.engine.error("list containers", error))?;
        Ok(containers.into_iter().filter_map(|container| self.found(container)).collect())
    }

    async fn tail(&self, infrastructure: &Infrastructure, lines: usize) -> Vec<String> {
        let tail = watch::tail(&self.engine, &infrastructure.id, lines);
        tokio::time::timeout(TAIL_DEADLINE, tail).await.unwrap_or_default()
    }

    async fn secrets(&self, infrastructure: &Infrastructure, attempt: &Attempt) -> Vec<SecretString> {
        let inspected =
            self.docker().inspect_container(&infrastructure.id, None::<InspectContainerOptions>).await;
        let Ok(container) = inspected else { return Vec::new() };
        let files = if labels::has(&container, labels::SECRET_FILES) {
            secret_files::read(self.docker(), &infrastructure.id).await
        } else {
            Vec::new()
        };
        let environment = container.config.and_then(|config| config.env).unwrap_or_default();
        let assignments = environment.iter().filter_map(|assignment| assignment.split_once('='));
        let mut secrets = redact::secrets(assignments, &attempt.secret_env);
        secrets.extend(files.iter().flat_map(redact::lines));
        secrets
    }

    async fn tidy(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError> {
        let inspected =
            self.docker().inspect_container(&infrastructure.id, None::<InspectContainerOptions>).await;
        let container = match inspected {
            Ok(container) => container,
            Err(Refused { status_code: 404, .. }) => return Ok(()),
            Err(error) => return Err(self.engine.error("inspect the container", error)),
        };
        if let Some(image) = &container.image {
            self.uses.note(&self.engine, image, None).await;
        }
        if labels::has(&container, labels::AUTO_REMOVE) {
            self.remove(&infrastructure.id).await?;
        }
        Ok(())
    }

    async fn kill(&self, infrastructure: &Infrastructure, grace: Duration) -> Result<(), LaunchError> {
        // The answer comes when the container has ended, hence after up to the whole grace.
        let docker = self.docker().clone().with_timeout(grace + Duration::from_secs(30));
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptions { t: Some(seconds), signal: None };
        match docker.stop_container(&infrastructure.id, Some(options)).await {
            Ok(()) | Err(Refused { status_code: 304, .. }) => Ok(()),
            Err(error) => Err(self.engine.container_error("stop the container", &infrastructure.id, error)),
        }
    }

    async fn companion(
        &self,
        infrastructure: &Infrastructure,
        command: &[&str],
    ) -> Result<Option<Infrastructure>, LaunchError> {
        companion::start(&self.engine, &infrastructure.id, command).await
    }

    async fn discard(&self, infrastructure: &Infrastructure) -> Result<(), LaunchError> {
        self.remove(&infrastructure.id).await
    }
}

/// What the engine's word for the state of a container means.
fn phase(state: ContainerSummaryStateEnum) -> Phase {
    match state {
        ContainerSummaryStateEnum::CREATED => Phase::Created,
        ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD => Phase::Ended,
        _ => Phase::Running,
    }
}

/// The base job template of `docker` pools: the data of `job-templates/docker.json`.
pub(crate) fn default_template() -> BaseJobTemplate {
    // The file is part of the program and read by a test: it cannot be malformed here.
    serde_json::from_str(include_str!("../../../../../job-templates/docker.json")).unwrap_or_default()
}

#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;
