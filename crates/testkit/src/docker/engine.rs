//! The connection to the engine, and what a test does with it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, NetworkCreateRequest, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions, InspectNetworkOptions,
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListNetworksOptionsBuilder,
    ListVolumesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    RemoveVolumeOptions, StartContainerOptions, StatsOptionsBuilder, WaitContainerOptions,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::image::Image;
use super::raw;
use crate::process::usage_of;

/// The label of everything that a run makes; its value is the run's own.
const LABEL: &str = "ferryman.testkit.run";

/// The label by which our worker's record of an image, a volume, names the image.
const IMAGE_LABEL: &str = "io.ferryman.image-id";

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const BUILD_DEADLINE: Duration = Duration::from_mins(10);
const CLEAN_UP_DEADLINE: Duration = Duration::from_mins(1);

/// A container to be started.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Image by tag or id.
    pub image: String,
    /// Name; without it the engine chooses one.
    pub name: Option<String>,
    /// Command; empty takes the image's.
    pub command: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Network by name; without it the default bridge.
    pub network: Option<String>,
    /// Labels beside the run's.
    pub labels: Vec<(String, String)>,
    /// Mounts as `host:container[:ro]`.
    pub binds: Vec<String>,
    /// Names of hosts as `name:address`.
    pub extra_hosts: Vec<String>,
    /// Further groups of its user, by number or name.
    pub groups: Vec<String>,
}

/// The Docker engine. Dropping it removes what it made.
#[derive(Debug)]
pub struct Engine {
    docker: Docker,
    host: String,
    run: String,
}

impl Engine {
    /// Connects to the engine that `DOCKER_HOST` names, or to `/var/run/docker.sock`.
    pub async fn connect() -> Result<Self> {
        Self::connect_to(&host()).await
    }

    /// Connects to the engine at this address, written as in `DOCKER_HOST`.
    pub async fn connect_to(host: &str) -> Result<Self> {
        let docker = connect(host).await?;
        Ok(Self { docker, host: host.to_owned(), run: Uuid::new_v4().simple().to_string() })
    }

    /// Whether an engine answers at this address now.
    pub(super) async fn answers(host: &str) -> Result<()> {
        connect(host).await.map(drop)
    }

    /// The API itself.
    pub fn api(&self) -> &Docker {
        &self.docker
    }

    /// The label of this run, as name and value.
    pub fn run_label(&self) -> (&str, &str) {
        (LABEL, &self.run)
    }

    /// The label of this run as a map, for whatever a test makes through the API.
    pub fn run_labels(&self) -> HashMap<String, String> {
        HashMap::from([(LABEL.to_owned(), self.run.clone())])
    }

    /// A name that no other run uses.
    pub fn name(&self, stem: &str) -> String {
        format!("ferryman-{stem}-{}", self.run.get(..12).unwrap_or(&self.run))
    }

    /// Builds an image and gives its id.
    pub async fn build_image(&self, tag: &str, image: Image) -> Result<String> {
        let image = if image.kept { image } else { image.label(LABEL, &self.run) };
        let (repository, version) = tag.rsplit_once(':').unwrap_or((tag, "latest"));
        // An import is one layer and one step. A build would take a step for each line, share equal ones with
        // images of other runs, and lose them to their clean-up.
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(repository)
            .tag(version)
            .changes(image.changes())
            .build();
        let mut files = image.files();
        let body = bollard::body_try_stream(stream::poll_fn(move |waker| files.poll_recv(waker)));
        let build = async {
            let mut steps = std::pin::pin!(self.docker.create_image(Some(options), Some(body), None));
            while let Some(step) = steps.next().await {
                if let Some(error) = step?.error_detail.and_then(|detail| detail.message) {
                    bail!("{error}");
                }
            }
            Ok(())
        };
        timeout(BUILD_DEADLINE, build)
            .await
            .context("the engine did not finish in time")
            .flatten()
            .with_context(|| format!("failed to build the image {tag}"))?;
        self.image_id(tag).await?.with_context(|| format!("the engine built {tag}, but does not have it"))
    }

    /// The id of an image, if the engine has it.
    pub async fn image_id(&self, tag: &str) -> Result<Option<String>> {
        let image = found(self.docker.inspect_image(tag).await).context("failed to inspect an image")?;
        Ok(image.and_then(|image| image.id))
    }

    /// A label of an image.
    pub async fn image_label(&self, tag: &str, label: &str) -> Result<Option<String>> {
        let image = found(self.docker.inspect_image(tag).await).context("failed to inspect an image")?;
        let labels = image.and_then(|image| image.config).and_then(|config| config.labels);
        Ok(labels.and_then(|mut labels| labels.remove(label)))
    }

    /// The size of an image in bytes.
    pub async fn image_size(&self, tag: &str) -> Result<u64> {
        let image = self.docker.inspect_image(tag).await;
        let size = image.with_context(|| format!("failed to inspect the image {tag}"))?.size;
        u64::try_from(size.unwrap_or_default()).context("an image of negative size")
    }

    /// Removes an image; an absent one is no error.
    pub async fn remove_image(&self, tag: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        found(self.docker.remove_image(tag, Some(options), None).await)
            .with_context(|| format!("failed to remove the image {tag}"))?;
        Ok(())
    }

    /// Creates a bridge network.
    pub async fn create_network(&self, name: &str) -> Result<()> {
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            labels: Some(self.run_labels()),
            ..Default::default()
        };
        self.docker
            .create_network(request)
            .await
            .with_context(|| format!("failed to create the network {name}"))?;
        Ok(())
    }

    /// Removes a network; an absent one is no error.
    pub async fn remove_network(&self, name: &str) -> Result<()> {
        found(self.docker.remove_network(name).await)
            .with_context(|| format!("failed to remove the network {name}"))?;
        Ok(())
    }

    /// The address under which containers of a network reach this machine; `bridge` is the default one.
    pub async fn gateway(&self, network: &str) -> Result<IpAddr> {
        let found = self.docker.inspect_network(network, None::<InspectNetworkOptions>).await;
        let found = found.with_context(|| format!("failed to inspect the network {network}"))?;
        let configs = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        configs
            .into_iter()
            .find_map(|config| match config.gateway.filter(|gateway| !gateway.is_empty()) {
                Some(gateway) => gateway.parse().ok(),
                None => first_address(&config.subnet?),
            })
            .with_context(|| format!("the network {network} has no gateway"))
    }

    /// Starts a container and gives its id.
    pub async fn run(&self, container: Container) -> Result<String> {
        let mut labels = self.run_labels();
        labels.extend(container.labels);
        let some = |words: Vec<String>| (!words.is_empty()).then_some(words);
        let body = ContainerCreateBody {
            image: Some(container.image.clone()),
            cmd: some(container.command),
            env: some(container.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
            labels: Some(labels),
            host_config: Some(HostConfig {
                network_mode: container.network,
                binds: some(container.binds),
                extra_hosts: some(container.extra_hosts),
                group_add: some(container.groups),
                ..Default::default()
            }),
            ..Default::default()
        };
        let options = container.name.map(|name| CreateContainerOptionsBuilder::new().name(&name).build());
        let created = self.docker.create_container(options, body).await;
        let id = created.with_context(|| format!("failed to create a container of {}", container.image))?.id;
        self.docker
            .start_container(&id, None::<StartContainerOptions>)
            .await
            .with_context(|| format!("failed to start a container of {}", container.image))?;
        Ok(id)
    }

    /// Waits for the end of a container and gives its exit code.
    pub async fn wait(&self, id: &str, deadline: Duration) -> Result<i64> {
        let mut ends = std::pin::pin!(self.docker.wait_container(id, None::<WaitContainerOptions>));
        match timeout(deadline, ends.next()).await {
            Err(_) => bail!("container {id} did not end within {deadline:?}:\n{}", self.logs(id).await?),
            Ok(None) => bail!("the engine told no end of container {id}"),
            Ok(Some(Ok(end))) => Ok(end.status_code),
            Ok(Some(Err(Error::DockerContainerWaitError { code, .. }))) => Ok(code),
            Ok(Some(Err(error))) => Err(error).with_context(|| format!("failed to wait for container {id}")),
        }
    }

    /// What a container has written so far, both streams.
    pub async fn logs(&self, id: &str) -> Result<String> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let lines: Vec<LogOutput> = self
            .docker
            .logs(id, Some(options))
            .try_collect()
            .await
            .with_context(|| format!("failed to read the log of container {id}"))?;
        Ok(lines.into_iter().map(|line| String::from_utf8_lossy(&line.into_bytes()).into_owned()).collect())
    }

    /// All that the engine knows of a container.
    pub async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse> {
        self.docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await
            .with_context(|| format!("failed to inspect container {id}"))
    }

    /// The same in the engine's own words: a typed answer has only the fields that its type knows. `None`: there is
    /// no such container.
    pub async fn inspect_raw(&self, id: &str) -> Result<Option<Value>> {
        raw::get(&host(), &format!("containers/{id}/json")).await
    }

    /// Creates a volume.
    pub async fn create_volume(&self, name: &str) -> Result<()> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(self.run_labels()),
            ..Default::default()
        };
        let created = self.docker.create_volume(request).await;
        created.with_context(|| format!("failed to create the volume {name}"))?;
        Ok(())
    }

    /// Ids of the containers with a label, running or not.
    pub async fn containers_with(&self, label: &str, value: Option<&str>) -> Result<Vec<String>> {
        containers_with(&self.docker, &filter(label, value)).await
    }

    /// Kills and removes a container; an absent one is no error.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        remove_container(&self.docker, id).await
    }

    /// Peak of the memory that the kernel charged to a running container, page cache included; `None` where
    /// the kernel does not record it (cgroup v2).
    pub async fn memory_peak(&self, id: &str) -> Result<Option<u64>> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let mut stats = std::pin::pin!(self.docker.stats(id, Some(options)));
        let stats = stats.next().await.context("the engine told no statistics")?;
        let stats = stats.with_context(|| format!("failed to read the statistics of container {id}"))?;
        Ok(stats.memory_stats.and_then(|memory| memory.max_usage))
    }

    /// Peak of the resident memory of a container's first process; `None` once it has ended.
    pub async fn rss_peak(&self, id: &str) -> Result<Option<u64>> {
        let pid = self.inspect(id).await?.state.and_then(|state| state.pid).unwrap_or_default();
        let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
        Ok(pid.and_then(usage_of).map(|usage| usage.rss_peak))
    }

    /// Removes every container, network, volume and image of this run.
    pub async fn clean_up(&self) -> Result<()> {
        clean_up(&self.docker, &self.run).await
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let (host, run) = (self.host.clone(), self.run.clone());
        // A connection of its own, on a runtime of its own: the caller's may be blocked or gone.
        let cleaner = std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("failed to start a runtime")?;
            runtime.block_on(async {
                let work = async { clean_up(&connect(&host).await?, &run).await };
                timeout(CLEAN_UP_DEADLINE, work).await.context("the engine did not answer in time")?
            })
        });
        match cleaner.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("failed to clean up the Docker engine: {error:#}"),
            Err(_) => tracing::error!("the clean-up of the Docker engine panicked"),
        }
    }
}

/// The engine's address: what `DOCKER_HOST` names, or the usual socket.
fn host() -> String {
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    host.unwrap_or_else(|| DEFAULT_HOST.to_owned())
}

async fn connect(host: &str) -> Result<Docker> {
    let attempt = async {
        let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
        docker.ping().await?;
        Ok::<_, Error>(docker)
    };
    let hint = || {
        format!(
            "failed to reach the Docker engine at {host}. Start it, let this user use its socket, or let \
             DOCKER_HOST name another one"
        )
    };
    let docker = timeout(CONNECT_DEADLINE, attempt).await.with_context(hint)?.with_context(hint)?;
    // Long enough for a build on a busy machine: the deadlines that matter are set per call.
    Ok(docker.with_timeout(BUILD_DEADLINE))
}

/// Turns "no such thing" into `None`.
fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// The first address of an IPv4 subnet: the gateway by the engine's convention, which it does not always tell.
fn first_address(subnet: &str) -> Option<IpAddr> {
    let network: Ipv4Addr = subnet.split_once('/')?.0.parse().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().checked_add(1)?)))
}

fn filter(label: &str, value: Option<&str>) -> HashMap<String, Vec<String>> {
    let word = value.map_or_else(|| label.to_owned(), |value| format!("{label}={value}"));
    HashMap::from([("label".to_owned(), vec![word])])
}

async fn containers_with(docker: &Docker, filter: &HashMap<String, Vec<String>>) -> Result<Vec<String>> {
    let options = ListContainersOptionsBuilder::new().all(true).filters(filter).build();
    let list = docker.list_containers(Some(options)).await.context("failed to list containers")?;
    Ok(list.into_iter().filter_map(|container| container.id).collect())
}

async fn remove_container(docker: &Docker, id: &str) -> Result<()> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match docker.remove_container(id, Some(options)).await {
        // Somebody else, such as the engine itself, is removing it already.
        Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to remove container {id}")),
    }
}

async fn clean_up(docker: &Docker, run: &str) -> Result<()> {
    let filter = filter(LABEL, Some(run));
    for id in containers_with(docker, &filter).await? {
        remove_container(docker, &id).await?;
    }
    let networks = ListNetworksOptionsBuilder::new().filters(&filter).build();
    let networks = docker.list_networks(Some(networks)).await.context("failed to list networks")?;
    for id in networks.into_iter().filter_map(|network| network.id) {
        found(docker.remove_network(&id).await).context("failed to remove a network")?;
    }
    let volumes = ListVolumesOptionsBuilder::new().filters(&filter).build();
    let volumes = docker.list_volumes(Some(volumes)).await.context("failed to list volumes")?;
    for volume in volumes.volumes.unwrap_or_default() {
        found(docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await)
            .context("failed to remove a volume")?;
    }
    let images = ListImagesOptionsBuilder::new().filters(&filter).build();
    let images = docker.list_images(Some(images)).await.context("failed to list images")?;
    for image in images {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        found(docker.remove_image(&image.id, Some(options), None).await)
            .context("failed to remove an image")?;
    }
    forget_images(docker).await
}

/// Removes what workers have recorded of images that are gone: of this run's, or of whosoever.
async fn forget_images(docker: &Docker) -> Result<()> {
    let records = ListVolumesOptionsBuilder::new().filters(&filter(IMAGE_LABEL, None)).build();
    let records = docker.list_volumes(Some(records)).await.context("failed to list volumes")?;
    for record in records.volumes.unwrap_or_default() {
        let image = record.labels.get(IMAGE_LABEL).map_or("", String::as_str);
        if found(docker.inspect_image(image).await).context("failed to inspect an image")?.is_none() {
            found(docker.remove_volume(&record.name, None::<RemoveVolumeOptions>).await)
                .context("failed to remove a volume")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_engine_is_named_with_the_remedy() {
        let error = connect("unix:///nonexistent/docker.sock").await.unwrap_err().to_string();
        assert!(
            error.contains("unix:///nonexistent/docker.sock") && error.contains("DOCKER_HOST"),
            "{error}"
        );
    }

    #[test]
    fn the_gateway_is_the_first_address_of_the_subnet() {
        assert_eq!(first_address("172.17.0.0/16"), Some(IpAddr::from([172, 17, 0, 1])));
        assert_eq!(first_address("fd00::/64"), None);
    }
}
