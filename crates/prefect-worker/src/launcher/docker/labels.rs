//! Labels of containers: the durable memory of what they are for.

use std::collections::{BTreeMap, HashMap};

use bollard::models::ContainerInspectResponse;

use prefect_client::PREFECT_VERSION;
use serde_json::json;

use super::super::{Attempt, Job};
use super::config::DockerConfig;

/// The version of Prefect that the worker is as good as; no job configuration changes it.
const VERSION: &str = "io.prefect.version";
/// The flow run a container belongs to.
pub(super) const FLOW_RUN: &str = "io.ferryman.flow-run-id";
/// The work pool it was launched for.
const WORK_POOL: &str = "io.ferryman.work-pool";
/// The worker that launched it.
const WORKER: &str = "io.ferryman.worker";
/// The [`Attempt`] as JSON: what a later worker has to know.
const ATTEMPT: &str = "io.ferryman.attempt";
/// Present if the container is to be removed once its end is reported.
pub(super) const AUTO_REMOVE: &str = "io.ferryman.auto-remove";

/// The container beside which this one was made.
pub(super) const COMPANION_OF: &str = "io.ferryman.companion-of";

/// Present if the container has secrets in files.
pub(super) const SECRET_FILES: &str = "io.ferryman.secret-files";

/// The digest of the image that the container was made of, where a registry gave one.
pub(super) const IMAGE_DIGEST: &str = "io.ferryman.image-digest";

/// All labels of the container for `job`. Ours come last: no job configuration can forge them.
pub(super) fn of(job: &Job, config: &DockerConfig) -> BTreeMap<String, String> {
    let (namespaced, plain): (Vec<_>, Vec<_>) = job.labels.iter().partition(|(name, _)| name.contains('/'));
    // Where both forms name one label, the one in Docker's own form was written last.
    let mut labels: BTreeMap<String, String> =
        namespaced.into_iter().chain(plain).map(|(name, value)| (docker_form(name), value.clone())).collect();
    labels.insert(VERSION.to_owned(), PREFECT_VERSION.to_owned());
    let attempt = &job.attempt;
    labels.insert(FLOW_RUN.to_owned(), attempt.flow_run_id.to_string());
    labels.insert(WORK_POOL.to_owned(), attempt.work_pool.clone());
    labels.insert(WORKER.to_owned(), attempt.worker.clone());
    labels.insert(ATTEMPT.to_owned(), json!(attempt).to_string());
    labels.remove(IMAGE_DIGEST);
    for (label, present) in [(AUTO_REMOVE, config.auto_remove), (SECRET_FILES, config.secret_files.is_used())]
    {
        labels.remove(label);
        if present {
            labels.insert(label.to_owned(), "true".to_owned());
        }
    }
    labels
}

/// The attempt that a container was made for; `None` for containers that are not ours.
pub(super) fn attempt(labels: &HashMap<String, String>) -> Option<Attempt> {
    let attempt: Attempt = serde_json::from_str(labels.get(ATTEMPT)?).ok()?;
    // A job configuration cannot forge our labels, but a person can.
    (labels.get(FLOW_RUN)? == &attempt.flow_run_id.to_string()).then_some(attempt)
}

/// Makes the labels of a container those of its companion: the same but for what would let it be taken for
/// the run's own.
pub(super) fn make_companion(labels: &mut HashMap<String, String>, of: &str) {
    for label in [ATTEMPT, FLOW_RUN, AUTO_REMOVE, SECRET_FILES] {
        labels.remove(label);
    }
    labels.insert(COMPANION_OF.to_owned(), of.to_owned());
}

/// The filter of containers that were made for a work pool.
pub(super) fn of_pool(work_pool: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{WORK_POOL}={work_pool}")])])
}

/// The filter of containers that were made for `job`'s flow run.
pub(super) fn filter(job: &Job) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{FLOW_RUN}={}", job.attempt.flow_run_id)])])
}

/// Whether the container bears this label.
pub(super) fn has(container: &ContainerInspectResponse, label: &str) -> bool {
    let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
    labels.is_some_and(|labels| labels.contains_key(label))
}

/// `prefect.io/name` to `io.prefect.name`, as Docker wants namespaces.
fn docker_form(label: &str) -> String {
    match label.split_once('/') {
        Some((namespace, name)) => {
            let reversed: Vec<&str> = namespace.rsplit('.').collect();
            format!("{}.{name}", reversed.join("."))
        }
        None => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::docker_form;

    #[test]
    fn namespaces_are_reversed() {
        assert_eq!(docker_form("prefect.io/flow-run-id"), "io.prefect.flow-run-id");
        assert_eq!(docker_form("a.b.c/d/e"), "c.b.a.d/e");
        assert_eq!(docker_form("plain"), "plain");
    }
}
