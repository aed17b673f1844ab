//! `retrieve_datasetlist`.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::process::Signal;
use testkit::s3::Restore;

use crate::prefect::set_state;
use crate::world::{ARCHIVE, World};

const PID: &str = "20.500.12345/Gold-0001";
const KEY: &str = "openem-network/datasets/20.500.12345/Gold-0001/datablocks/20.500.12345-Gold-0001_0.tar";
const RUN: &str = "retrieve_dataset-dataset_id-20.500.12345/Gold-0001";
const FLOW: &str = "retrieve_datasetlist";

/// A dataset with two archived datablocks.
fn add_archived(world: &World, pid: &str) {
    let catalogue = world.scicat.catalogue();
    catalogue.create_dataset(pid);
    for index in 0..2 {
        let name = format!("{}_{index}.tar", pid.replace('/', "-"));
        let key = format!("openem-network/datasets/{pid}/datablocks/{name}");
        world.s3.store().put_class(ARCHIVE, &key, b"tar!", "GLACIER").unwrap();
        let file = json!({"path": format!("f{index}"), "size": 3, "time": "2026-01-01T00:00:00Z"});
        let datablock =
            json!({"archiveId": key, "size": 3, "packedSize": 4, "version": "1.0", "dataFileList": [file]});
        catalogue.add_datablock(pid, &datablock);
    }
    let archived =
        json!({"archivable": false, "retrievable": true, "archiveStatusMessage": "datasetOnArchiveDisk"});
    catalogue.patch_dataset(pid, &json!({"datasetlifecycle": archived}));
}

fn result(world: &World, job: &str) -> Value {
    world.scicat.catalogue().job(job).unwrap()["jobResultObject"].clone()
}

fn fate(retrieved: &str) -> (bool, bool, String, String) {
    (false, true, "datasetOnArchiveDisk".to_owned(), retrieved.to_owned())
}

#[tokio::test]
async fn links_are_handed_out_when_the_datablocks_can_be_read() {
    let world = World::with_restore(Restore::Heads(1)).await;
    add_archived(&world, PID);
    let job = world.retrieve_job(&[PID]);
    let output = world.run_job(FLOW, &job).await;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedSuccessful"]);
    assert_eq!(world.fate(PID), fate("datasetRetrieved"));

    let result = result(&world, &job);
    let first = &result["result"][0];
    assert_eq!(first["datasetId"], PID);
    assert_eq!(first["name"], "20.500.12345-Gold-0001_0.tar");
    assert_eq!(first["size"], 3);
    assert_eq!(first["archiveId"], KEY);
    let url = first["url"].as_str().unwrap();
    assert!(url.contains("X-Amz-Expires=604800") && url.contains("/dev.archival/"), "{url}");
    assert_eq!(result["result"].as_array().unwrap().len(), 2);

    let script = world.prefect.artifact("script").unwrap()["data"].as_str().unwrap().to_owned();
    assert!(script.starts_with("Download script for all datablocks in this job\n```bash\n#!"), "{script}");
    let link = world.prefect.artifact("20-500-12345-gold-0001-0").unwrap();
    assert_eq!(link["data"], format!("[{url}]({url})"));
    assert_eq!(link["description"], "Link to a datablock 20-500-12345-gold-0001-0");
    assert!(!world.prefect.logged("X-Amz-Signature") && !output.stderr.contains("X-Amz-Signature"));
    insta::assert_snapshot!(world.prefect.task_runs().join("\n").replace(&job, "JOB"));
}

#[tokio::test]
async fn a_dataset_that_was_never_archived_stays_as_it_is() {
    let world = World::start().await;
    world.scicat.catalogue().create_dataset(PID);
    let job = world.retrieve_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    assert_eq!(world.fate(PID), (true, false, "datasetCreated".to_owned(), String::new()));
    assert!(world.changes().iter().all(|change| change.contains("/jobs/")), "{:?}", world.changes());
}

#[tokio::test]
async fn a_lost_datablock_fails_its_dataset_only() {
    let world = World::start().await;
    add_archived(&world, PID);
    add_archived(&world, "20.500.12345/whole");
    world.s3.store().delete(ARCHIVE, KEY).unwrap();
    let job = world.retrieve_job(&[PID, "20.500.12345/whole"]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedWithDatasetErrors"]);
    assert_eq!(world.fate(PID), fate("datasetRetrievalFailed"));
    assert_eq!(world.fate("20.500.12345/whole"), fate("datasetRetrieved"));
    let datasets: Vec<_> = result(&world, &job)["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["datasetId"].clone())
        .collect();
    assert_eq!(datasets, ["20.500.12345/whole", "20.500.12345/whole"]);
}

#[tokio::test]
async fn a_dataset_that_another_run_retrieves_is_waited_for() {
    let world = World::start().await;
    add_archived(&world, PID);
    let mut other = json!({"id": "0f0e0d0c-0b0a-0908-0706-050403020100", "name": RUN, "flow_id": "0f0e0d0c-0b0a-0908-0706-050403020101"});
    set_state(&mut other, &json!({"type": "RUNNING", "name": "Running"}));
    world.prefect.records().flow_runs.push(other);
    let job = world.retrieve_job(&[PID]);
    let mut process = world.spawn(FLOW, &job);
    world.until("it waits", |world| world.prefect.logged("waiting for flow run 0f0e0d0c")).await;
    set_state(&mut world.prefect.records().flow_runs[0], &json!({"type": "COMPLETED", "name": "Completed"}));
    assert!(process.wait(Duration::from_secs(90)).await.unwrap().success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedSuccessful"]);
    assert_eq!(result(&world, &job)["result"].as_array().unwrap().len(), 2);
    assert_eq!(world.fate(PID), fate(""), "the other run reports the lifecycle");
}

#[tokio::test]
async fn a_dead_run_of_the_same_dataset_is_not_waited_for() {
    let world = World::start().await;
    add_archived(&world, PID);
    let (parent, task) = ("0f0e0d0c-0b0a-0908-0706-050403020102", "0f0e0d0c-0b0a-0908-0706-050403020103");
    let flow = "0f0e0d0c-0b0a-0908-0706-050403020101";
    let mut dead = json!({"id": "0f0e0d0c-0b0a-0908-0706-050403020100", "name": RUN, "flow_id": flow, "parent_task_run_id": task});
    set_state(&mut dead, &json!({"type": "RUNNING", "name": "Running"}));
    let mut ended = json!({"id": parent, "name": "retrieve_datasetlist-job_id-x", "flow_id": flow});
    set_state(&mut ended, &json!({"type": "CRASHED", "name": "Crashed"}));
    {
        let mut records = world.prefect.records();
        records.flow_runs.extend([dead, ended]);
        records.task_runs.push(
            json!({"id": task, "name": "t", "task_key": "t", "dynamic_key": "0", "flow_run_id": parent}),
        );
    }
    let job = world.retrieve_job(&[PID]);
    assert!(world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.fate(PID), fate("datasetRetrieved"));
}

#[tokio::test]
async fn a_terminated_retrieval_is_told() {
    let world = World::with_restore(Restore::Held).await;
    add_archived(&world, PID);
    let job = world.retrieve_job(&[PID]);
    let mut process = world.spawn(FLOW, &job);
    world.until("both restores are asked for", |world| world.s3.calls_of("RestoreObject") == 2).await;
    process.signal(Signal::Terminate).unwrap();
    process.wait(Duration::from_secs(90)).await.unwrap();
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    assert_eq!(world.fate(PID), fate("datasetRetrievalFailed"));
}
