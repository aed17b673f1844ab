//! A second container beside one that has ended, for the hooks of its flow: same image, environment, mounts,
//! limits and secrets, another command.

use std::collections::HashMap;

use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, NetworkConnectRequest};
use bollard::query_parameters::{
    CreateContainerOptions, DownloadFromContainerOptions, InspectContainerOptions, StartContainerOptions,
    UploadToContainerOptions,
};
use futures_util::StreamExt as _;

use super::super::{Infrastructure, LaunchError};
use super::engine::Engine;
use super::{labels, secret_files};

/// Label of images whose program has hooks: `prefect flow-run hook`.
const HOOKS: &str = "io.ferryman.flow-run-hook";
/// What is appended to a container's name for that of its companion.
const SUFFIX: &str = "-hook";
/// The most bytes of secret files that are carried over.
const MOST_BYTES: usize = 4 << 20;

/// Makes and starts the companion of a container. `None` if the image declares no hooks, or the container or
/// its image is gone.
pub(super) async fn start(
    engine: &Engine,
    container: &str,
    command: &[&str],
) -> Result<Option<Infrastructure>, LaunchError> {
    let inspected = engine.docker.inspect_container(container, None::<InspectContainerOptions>).await;
    let inspected = match inspected {
        Ok(inspected) => inspected,
        Err(Refused { status_code: 404, .. }) => return Ok(None),
        Err(error) => return Err(engine.error("inspect the container", error)),
    };
    let image = inspected.image.clone().unwrap_or_default();
    match engine.docker.inspect_image(&image).await {
        Ok(image) => {
            let declared = image.config.and_then(|config| config.labels).unwrap_or_default();
            if declared.get(HOOKS).is_none_or(|value| value != "true") {
                return Ok(None);
            }
        }
        Err(Refused { status_code: 404, .. }) => return Ok(None),
        Err(error) => return Err(engine.error("inspect the image", error)),
    }

    let name = inspected.name.as_deref().unwrap_or_default().trim_start_matches('/').to_owned() + SUFFIX;
    let networks = further_networks(&inspected);
    // With a read-only root they are in a volume, which comes along.
    let read_only = inspected.host_config.as_ref().and_then(|host| host.readonly_rootfs).unwrap_or(false);
    let secrets = labels::has(&inspected, labels::SECRET_FILES) && !read_only;
    let Some(body) = body(inspected, command) else { return Ok(None) };
    let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
    let created = match engine.docker.create_container(Some(options), body).await {
        Ok(created) => created,
        // Another worker saw the same end, and was faster.
        Err(Refused { status_code: 409, .. }) => return Ok(None),
        Err(error) => return Err(engine.error("create the container", error)),
    };
    let companion = engine.infrastructure(created.id, name);
    let started = furnish_and_start(engine, container, &companion.id, networks, secrets).await;
    if let Err(error) = started {
        engine.remove(&companion.id).await?;
        return Err(error);
    }
    Ok(Some(companion))
}

async fn furnish_and_start(
    engine: &Engine,
    container: &str,
    companion: &str,
    networks: Vec<String>,
    secrets: bool,
) -> Result<(), LaunchError> {
    for network in networks {
        let request = NetworkConnectRequest { container: companion.to_owned(), endpoint_config: None };
        let connected = engine.docker.connect_network(&network, request).await;
        connected.map_err(|error| engine.error("connect the container to its networks", error))?;
    }
    if secrets {
        carry_secrets_over(engine, container, companion).await?;
    }
    let started = engine.docker.start_container(companion, None::<StartContainerOptions>).await;
    started.map_err(|error| engine.error("start the container", error))
}

/// What creates the companion: what the container was created with, but for command, labels and restarts.
fn body(container: ContainerInspectResponse, command: &[&str]) -> Option<ContainerCreateBody> {
    let config = container.config?;
    let mut host = container.host_config?;
    // Its binds are in its configuration; anonymous volumes are known by the container alone.
    host.volumes_from = Some(vec![container.id.clone()?]);
    let mut labels: HashMap<String, String> = config.labels.unwrap_or_default();
    labels::make_companion(&mut labels, container.id.as_deref().unwrap_or_default());
    Some(ContainerCreateBody {
        image: container.image,
        cmd: Some(command.iter().map(|&part| part.to_owned()).collect()),
        entrypoint: config.entrypoint,
        env: config.env,
        user: config.user,
        working_dir: config.working_dir,
        labels: Some(labels),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..Default::default()
    })
}

/// The networks of a container beside the one that its host configuration names.
fn further_networks(container: &ContainerInspectResponse) -> Vec<String> {
    let mode = container.host_config.as_ref().and_then(|host| host.network_mode.clone()).unwrap_or_default();
    let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let names = networks.into_iter().flat_map(HashMap::keys);
    names.filter(|name| **name != mode && !(mode == "default" && *name == "bridge")).cloned().collect()
}

/// Secret files are in the container itself and in nothing that describes it.
async fn carry_secrets_over(engine: &Engine, from: &str, to: &str) -> Result<(), LaunchError> {
    let options = DownloadFromContainerOptions { path: secret_files::DIRECTORY.to_owned() };
    let mut archive = engine.docker.download_from_container(from, Some(options));
    let mut bytes = Vec::new();
    while let Some(piece) = archive.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return Err(engine.error("read the secret files of the container", error)),
        }
        if bytes.len() > MOST_BYTES {
            let message = format!("{} holds more than was put there", secret_files::DIRECTORY);
            return Err(LaunchError::Engine { action: "read the secret files of the container", message });
        }
    }
    let parent = secret_files::DIRECTORY.rsplit_once('/').map_or("/", |(parent, _)| parent);
    let options = UploadToContainerOptions { path: parent.to_owned(), ..Default::default() };
    let put = engine.docker.upload_to_container(to, Some(options), bollard::body_full(bytes.into())).await;
    put.map_err(|error| engine.error("put the secret files into the container", error))
}
