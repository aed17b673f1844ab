//! Labels of containers: the durable memory of what they are for.

use std::collections::{BTreeMap, HashMap};

use bollard::models::ContainerInspectResponse;

use prefect_api::id::{FlowRunId, WorkPoolId};
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

/// What a container of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is an attempt at this flow run, which came from the work pool with this id.
    Run { id: FlowRunId, pool: Option<WorkPoolId> },
    /// It was made beside one that had ended.
    Companion,
}

/// What a container is for, and the name of the work pool that it was made for; `None` for containers that are not ours.
/// `inherited` are the labels of its image: a container's labels go into images that are made of it, and on to
/// whatever is made of these.
pub(super) fn purpose(
    labels: &HashMap<String, String>,
    inherited: &HashMap<String, String>,
) -> Option<(Purpose, String)> {
    let own = |label| labels.get(label).filter(|value| inherited.get(label) != Some(value));
    let purpose = match (own(ATTEMPT), own(COMPANION_OF)) {
        (Some(_), _) => {
            let Attempt { flow_run_id: id, work_pool_id: pool, .. } = attempt(labels)?;
            Purpose::Run { id, pool }
        }
        (None, Some(_)) => Purpose::Companion,
        (None, None) => return None,
    };
    labels.get(WORKER)?;
    Some((purpose, labels.get(WORK_POOL)?.clone()))
}

/// Makes the labels of a container those of its companion: the same but for what would let it be taken for
/// the run's own.
pub(super) fn make_companion(labels: &mut HashMap<String, String>, of: &str) {
    for label in [ATTEMPT, FLOW_RUN, AUTO_REMOVE, SECRET_FILES] {
        labels.remove(label);
    }
    labels.insert(COMPANION_OF.to_owned(), of.to_owned());
}

/// The filter of what bears labels of containers of ours.
pub(super) fn of_any_pool() -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![WORK_POOL.to_owned()])])
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
    use super::super::super::Attempt;
    use super::*;

    #[test]
    fn namespaces_are_reversed() {
        assert_eq!(docker_form("prefect.io/flow-run-id"), "io.prefect.flow-run-id");
        assert_eq!(docker_form("a.b.c/d/e"), "c.b.a.d/e");
        assert_eq!(docker_form("plain"), "plain");
    }

    #[test]
    fn containers_are_ours_by_labels_of_their_own() {
        let mut attempt = Attempt::new(FlowRunId::generate(), "pool", "worker");
        attempt.work_pool_id = Some(WorkPoolId::generate());
        let job = Job::new(attempt, "name", "command");
        let config = DockerConfig::parse(&serde_json::Map::new()).unwrap();
        let run: HashMap<String, String> = of(&job, &config).into_iter().collect();
        let none = HashMap::new();
        let pool = "pool".to_owned();
        let Attempt { flow_run_id, work_pool_id, .. } = job.attempt;
        let attempt = Purpose::Run { id: flow_run_id, pool: work_pool_id };
        assert_eq!(purpose(&run, &none), Some((attempt, pool.clone())));
        assert_eq!(purpose(&run, &run), None, "it is of an image that was made of a container of ours");
        assert_eq!(purpose(&none, &none), None);

        let mut companion = run.clone();
        make_companion(&mut companion, "0123");
        assert_eq!(purpose(&companion, &none), Some((Purpose::Companion, pool)));
        assert_eq!(purpose(&companion, &companion), None);

        for label in [FLOW_RUN, WORK_POOL, WORKER, ATTEMPT] {
            let mut damaged = run.clone();
            damaged.remove(label);
            assert_eq!(purpose(&damaged, &none), None, "without {label}");
            damaged.insert(label.to_owned(), "another".to_owned());
            assert!(
                [WORK_POOL, WORKER].contains(&label) || purpose(&damaged, &none).is_none(),
                "with another {label}"
            );
        }
    }
}
