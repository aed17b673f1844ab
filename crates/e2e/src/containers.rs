//! What the containers of flow runs did while they lived, and what they left.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use prefect_api::id::FlowRunId;
use testkit::docker::Engine;
use tokio::task::JoinSet;

/// The label by which a worker, ours or Python's, names the run of a container.
pub(crate) const RUN_LABEL: &str = "io.prefect.flow-run-id";

/// How often the memory of running containers is read.
const SAMPLE: Duration = Duration::from_millis(100);

/// Ids of the containers of a flow run.
pub async fn of_run(docker: &Docker, run: FlowRunId) -> Result<Vec<String>> {
    list(docker, "label", &format!("{RUN_LABEL}={run}")).await
}

/// Ids of the containers on a network.
pub async fn on_network(docker: &Docker, network: &str) -> Result<Vec<String>> {
    list(docker, "network", network).await
}

/// Ids of the containers of an image.
pub async fn of_image(docker: &Docker, image: &str) -> Result<Vec<String>> {
    list(docker, "ancestor", image).await
}

async fn list(docker: &Docker, filter: &str, value: &str) -> Result<Vec<String>> {
    let filters = HashMap::from([(filter.to_owned(), vec![value.to_owned()])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = docker.list_containers(Some(options)).await?;
    Ok(found.into_iter().filter_map(|container| container.id).collect())
}

/// Removes containers, running or not; one that is gone already is no error.
pub async fn remove(docker: &Docker, ids: &[String]) {
    for id in ids {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        // Somebody else, for example `auto_remove`, may have been faster.
        drop(docker.remove_container(id, Some(options)).await);
    }
}

/// Kills a container, as the kernel does when memory is short.
pub async fn kill(docker: &Docker, id: &str) -> Result<()> {
    Ok(docker.kill_container(id, None::<bollard::query_parameters::KillContainerOptions>).await?)
}

/// How many files a container made or changed in its own file system.
pub async fn scratch_files(docker: &Docker, id: &str) -> Result<usize> {
    Ok(docker.container_changes(id).await?.unwrap_or_default().len())
}

/// Samples the resident memory of the containers on a network while it lives.
#[derive(Debug)]
pub struct MemoryWatch {
    peaks: Arc<Mutex<BTreeMap<String, u64>>>,
    _task: JoinSet<()>,
}

impl MemoryWatch {
    /// Starts sampling.
    pub fn start(engine: Arc<Engine>, network: String) -> Self {
        let peaks = Arc::new(Mutex::new(BTreeMap::new()));
        let mut task = JoinSet::new();
        let shared = Arc::clone(&peaks);
        task.spawn(async move {
            loop {
                for id in on_network(engine.api(), &network).await.unwrap_or_default() {
                    // A container that is not running has no process to read.
                    if let Ok(Some(bytes)) = engine.rss_peak(&id).await {
                        let mut peaks = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        let peak = peaks.entry(id).or_insert(0);
                        *peak = bytes.max(*peak);
                    }
                }
                tokio::time::sleep(SAMPLE).await;
            }
        });
        Self { peaks, _task: task }
    }

    /// The highest resident memory of a container so far, in bytes.
    pub fn peak(&self, id: &str) -> Option<u64> {
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }
}
