//! Our worker and our runtime in the place of Python's, and beside them: all four combinations.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::time::Duration;

use common::{end, ingest, s3_client, stack, trigger_archival};
use e2e::local::archive_prefix;
use e2e::stack::{ARCHIVE, POOLS, Stack};
use e2e::{containers, outside, runs};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::flow_run::FlowRun;
use prefect_api::state::StateType;
use serde_json::{Value, json};
use testkit::docker::python_image;
use testkit::process::Process;

const RUN: Duration = Duration::from_mins(5);

fn python_worker(stack: &Stack) -> Process {
    let e2e::stack::Server::Ours(server) = &stack.server else { panic!("the tests bring their own server") };
    server.start_python_worker(POOLS[0], &[], &[("PREFECT_WORKER_QUERY_SECONDS", "2")]).unwrap()
}

async fn completed(stack: &Stack, run: &FlowRun, worker_log: impl Future<Output = String>) -> FlowRun {
    match runs::wait(&stack.prefect, run.id, RUN, |_| {}).await {
        Ok(ended) if ended.state_type == Some(StateType::Completed) => ended,
        Ok(ended) => panic!("{}", runs::explain(&stack.prefect, &ended).await),
        Err(error) => panic!("{error:#}; the worker says:\n{}", worker_log.await),
    }
}

/// Archives a small dataset and checks it from outside.
async fn archive(stack: &Stack, worker_log: impl Future<Output = String>) {
    let pid = "20.500.12345/combination";
    let (dataset, _folder) = ingest(stack, pid).await;
    let (job, run) = trigger_archival(stack, pid).await;
    let ended = completed(stack, &run, worker_log).await;
    assert_eq!(ended.name, format!("archive_datasetlist-job_id-{job}"));
    let unpacked = tempfile::tempdir().unwrap();
    outside::unpack_archive(&s3_client(stack), ARCHIVE, &archive_prefix(pid), unpacked.path()).await.unwrap();
    dataset.compare(unpacked.path()).unwrap();
    let job = stack.scicat.catalogue().job(&job).unwrap();
    assert_eq!(job["statusMessage"], "finishedSuccessful");
    let lifecycle = stack.scicat.catalogue().lifecycle(pid).unwrap();
    assert_eq!(lifecycle["archiveStatusMessage"], "datasetOnArchiveDisk");
    assert_container_was_told(stack, &run).await;
    assert_page_shows(stack, &run).await;
}

/// What the run's page in the UI is made of: its graph, its log, its progress.
async fn assert_page_shows(stack: &Stack, run: &FlowRun) {
    let kinds = async {
        loop {
            // The server records task runs a moment after their events came.
            let graph = stack.prefect.read_graph(run.id).await.unwrap();
            let nodes = graph["nodes"].as_array().unwrap().clone();
            let of = |kind: &str| nodes.iter().filter(|node| node[1]["kind"] == kind).count();
            if nodes.iter().all(|node| node[1]["state_type"] == "COMPLETED")
                && (of("flow-run"), of("task-run")) == (1, 3)
            {
                return;
            }
        }
    };
    tokio::time::timeout(RUN, kinds).await.expect("the graph is not one subflow and three task runs");
    let filter = json!({"artifacts": {"flow_run_id": {"any_": [run.id]}}});
    let artifacts = stack.prefect.filter_artifacts(&filter).await.unwrap();
    let progress = artifacts.iter().find(|artifact| artifact.kind.as_deref() == Some("progress")).unwrap();
    assert_eq!(progress.data.as_f64(), Some(100.0));
    let log = runs::logs(&stack.prefect, run.id).await.unwrap();
    assert!(log.iter().any(|line| line == "Finished in state Completed()"), "{log:?}");
}

/// Runs a Python flow in a container of the Python image.
async fn greet(stack: &Stack, image: &str, worker_log: impl Future<Output = String>) {
    let flow_id = stack.prefect.create_flow("greet").await.unwrap().id;
    let job_variables = json!({"image": image, "image_pull_policy": "Never", "networks": [stack.network]});
    let Value::Object(job_variables) = job_variables else { unreachable!() };
    let settings = DeploymentSettings {
        parameter_openapi_schema: json!({"type": "object", "properties": {"name": {"type": "string"}}}),
        work_pool_name: Some(POOLS[0].to_owned()),
        entrypoint: Some("flow.py:greet".to_owned()),
        pull_steps: Some(vec![
            json!({"prefect.deployments.steps.set_working_directory": {"directory": "/opt/flow"}}),
        ]),
        job_variables,
        ..DeploymentSettings::default()
    };
    let deployment =
        NewDeployment { name: "python".to_owned(), flow_id, settings, enforce_parameter_schema: true };
    stack.prefect.create_deployment(&deployment).await.unwrap();
    let run = runs::trigger(&stack.prefect, "greet", "python", json!({"name": "Ferryman"})).await.unwrap();
    completed(stack, &run, worker_log).await;
    assert_container_was_told(stack, &run).await;
}

/// What every worker leaves with a run: the container's id, and labels on the container.
async fn assert_container_was_told(stack: &Stack, run: &FlowRun) {
    let run = stack.prefect.read_flow_run(run.id).await.unwrap();
    let ids = containers::of_run(stack.engine.api(), run.id).await.unwrap();
    assert_eq!(ids.len(), 1, "one container for one run");
    let pid = run.infrastructure_pid.unwrap();
    assert_eq!(pid.rsplit_once(':').unwrap().1, ids[0]);
    assert_eq!(run.labels["prefect.worker.type"], "docker");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_worker_runs_our_runtime() {
    let (engine, mut stack) = stack("ours-ours").await;
    stack.start_worker(POOLS[0]).await.unwrap();
    archive(&stack, stack.worker_log()).await;
    end(engine, stack, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_worker_runs_our_runtime() {
    let (engine, stack) = stack("python-ours").await;
    let worker = python_worker(&stack);
    archive(&stack, async { worker.log() }).await;
    end(engine, stack, Some(worker)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_worker_runs_the_python_runtime() {
    let (engine, mut stack) = stack("ours-python").await;
    let image = python_image(&engine, &testkit::prefect::Venv::prepare().await.unwrap()).await.unwrap();
    stack.start_worker(POOLS[0]).await.unwrap();
    greet(&stack, &image, stack.worker_log()).await;
    end(engine, stack, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_worker_runs_the_python_runtime() {
    let (engine, stack) = stack("python-python").await;
    let image = python_image(&engine, &testkit::prefect::Venv::prepare().await.unwrap()).await.unwrap();
    let worker = python_worker(&stack);
    greet(&stack, &image, async { worker.log() }).await;
    end(engine, stack, Some(worker)).await;
}
