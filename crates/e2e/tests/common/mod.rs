//! What tests of a whole installation share.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use e2e::dataset::Dataset;
use e2e::local::landing_prefix;
use e2e::programs::Programs;
use e2e::stack::{LANDING_ZONE, Servers, Stack, remove_leftovers};
use e2e::{runs, s3};
use prefect_api::flow_run::FlowRun;
use serde_json::json;
use testkit::docker::Engine;
use testkit::process::Process;

/// A stack with its bootstrap done and no worker.
pub(crate) async fn stack(stem: &str) -> (Arc<Engine>, Stack) {
    let engine = Arc::new(Engine::connect().await.unwrap());
    let network = engine.name(stem);
    let servers = Servers::start(Arc::clone(&engine), &network).await.unwrap();
    let stack = servers.with_images(&Programs::find().unwrap(), &network).await.unwrap();
    stack.bootstrap().await.unwrap();
    (engine, stack)
}

pub(crate) async fn end(engine: Arc<Engine>, stack: Stack, worker: Option<Process>) {
    if let Some(worker) = worker {
        worker.stop(Duration::from_secs(20)).await.unwrap();
    }
    let network = stack.network.clone();
    stack.stop().await.unwrap();
    remove_leftovers(&engine, &network).await.unwrap();
}

/// A small dataset in the landing zone and the catalogue; gives the files and their folder.
pub(crate) async fn ingest(stack: &Stack, pid: &str) -> (Dataset, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("a file.txt"), "bytes").unwrap();
    let dataset = Dataset::of_directory(files.path()).unwrap();
    stack.scicat.catalogue().create_dataset(pid);
    stack.scicat.catalogue().add_origdatablock(pid, &dataset.claims());
    dataset.upload(&s3_client(stack), LANDING_ZONE, &landing_prefix(pid), |_| {}).await.unwrap();
    (dataset, files)
}

/// Triggers the archival of a dataset; gives the SciCat job and the run.
pub(crate) async fn trigger_archival(stack: &Stack, pid: &str) -> (String, FlowRun) {
    let job = stack.scicat.catalogue().create_job("archive", &[pid]);
    let parameters = json!({"job_id": job});
    let run =
        runs::trigger(&stack.prefect, "archive_datasetlist", "datasets_archival", parameters).await.unwrap();
    (job, run)
}

/// A plain client of the stack's S3 server.
pub(crate) fn s3_client(stack: &Stack) -> aws_sdk_s3::Client {
    s3::client(&stack.s3.endpoint(), stack.s3.access_key(), stack.s3.secret_key())
}
