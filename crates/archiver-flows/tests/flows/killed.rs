//! What a job and its datasets are told of a run that was killed.

use std::time::Duration;

use serde_json::json;
use testkit::faults::Fault;

use crate::prefect::set_state;
use crate::world::{ARCHIVE, LANDING, World};

const ARCHIVE_FLOW: &str = "archive_datasetlist";
const PID: &str = "20.500.12345/gold-0001";
const OTHER: &str = "20.500.12345/gold-0002";
const FILES: [(&str, usize); 2] = [("a.txt", 700), ("b.txt", 900)];

fn forever() -> Duration {
    Duration::from_mins(10)
}

/// A job about both datasets whose run was killed while it stored the second one.
async fn killed() -> (World, String) {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.add_dataset(OTHER, &FILES);
    world.s3.faults().add(Fault::on("PutObject").containing("gold-0002").delay(forever()).after_effect());
    let job = world.archive_job(&[PID, OTHER]);
    let process = world.spawn(ARCHIVE_FLOW, &job);
    world
        .until("the first tar of the second dataset is stored", |world| world.keys(ARCHIVE).len() == 3)
        .await;
    process.kill();
    assert_eq!(world.fate(OTHER).2, "started");
    (world, format!("archive_datasetlist-job_id-{job}"))
}

fn job_of(run: &str) -> &str {
    run.strip_prefix("archive_datasetlist-job_id-").unwrap()
}

#[tokio::test]
async fn its_job_and_the_dataset_at_hand_are_told_and_nothing_else_is_touched() {
    let (world, run) = killed().await;
    let (tars, files) = (world.keys(ARCHIVE), world.keys(LANDING));
    let output = world.run_crash_hooks(&run).await;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.history(job_of(&run))[1..], ["inProgress", "finishedWithDatasetErrors"]);
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
    assert_eq!(world.fate(OTHER), (true, false, "scheduleArchiveJobFailed".to_owned(), String::new()));
    assert_eq!((world.keys(ARCHIVE), world.keys(LANDING)), (tars, files));
    assert_eq!(world.prefect.flow_run(&run).0, "Crashed");
    for line in [
        "Running hook 'tell_job' in response to entering state 'Crashed'",
        "finishedWithDatasetErrors; its run ended as Crashed without telling it",
        "Hook 'tell_job' finished running successfully",
    ] {
        assert!(world.prefect.logged(line), "{line}");
    }

    let changes = world.changes().len();
    assert!(world.run_crash_hooks(&run).await.status.success());
    assert_eq!(world.changes().len(), changes, "a second call has nothing to tell");
    assert!(world.prefect.logged("knows how it ended: finishedWithDatasetErrors"));

    world.s3.faults().clear();
    let job = world.archive_job(&[OTHER]);
    let output = world.run_job(ARCHIVE_FLOW, &job).await;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.fate(OTHER).2, "datasetOnArchiveDisk");
}

/// Makes Prefect know of another run at work, of this name.
fn add_run(world: &World, name: &str) {
    let id = "0f0e0d0c-0b0a-0908-0706-050403020100";
    let mut other = json!({"id": id, "name": name, "flow_id": "0f0e0d0c-0b0a-0908-0706-050403020101"});
    set_state(&mut other, &json!({"type": "RUNNING", "name": "Running"}));
    world.prefect.records().flow_runs.push(other);
}

#[tokio::test]
async fn a_dataset_that_another_run_has_taken_up_is_left_to_it() {
    let (world, run) = killed().await;
    add_run(&world, &format!("archive_dataset-dataset_id-{OTHER}"));
    assert!(world.run_crash_hooks(&run).await.status.success());
    assert_eq!(world.fate(OTHER).2, "started");
    assert_eq!(world.history(job_of(&run))[1..], ["inProgress", "finishedWithDatasetErrors"]);
}

#[tokio::test]
async fn a_job_that_another_run_has_taken_up_is_left_to_it() {
    let (world, run) = killed().await;
    let dead = world.prefect.records().flow_runs.iter().position(|it| it["name"] == run.as_str()).unwrap();
    add_run(&world, &run);
    let records = world.prefect.records().flow_runs.len();
    assert!(dead < records - 1, "the dead one comes first");
    assert!(world.run_crash_hooks(&run).await.status.success());
    assert_eq!(world.history(job_of(&run))[1..], ["inProgress"]);
    assert_eq!(world.fate(OTHER).2, "started");
}

#[tokio::test]
async fn a_dataset_that_cannot_be_told_fails_the_hook_and_nothing_else() {
    let (world, run) = killed().await;
    world.scicat.faults().add(Fault::on("PATCH").containing("/datasetlifecycle").status(400));
    let output = world.run_crash_hooks(&run).await;
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    assert_eq!(
        world.history(job_of(&run))[1..],
        ["inProgress", "finishedWithDatasetErrors"],
        "the job is told"
    );
    assert!(
        world.prefect.logged("An error was encountered while running hook 'tell_job': tell 1 of 2 datasets")
    );
}

#[tokio::test]
async fn a_killed_retrieval_is_told_as_failed() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    let job = world.archive_job(&[PID]);
    assert!(world.run_job(ARCHIVE_FLOW, &job).await.status.success());
    world.s3.faults().add(Fault::on("RestoreObject").delay(forever()));
    let job = world.retrieve_job(&[PID]);
    let process = world.spawn("retrieve_datasetlist", &job);
    world.until("the dataset is being retrieved", |world| world.fate(PID).3 == "started").await;
    process.kill();
    let run = format!("retrieve_datasetlist-job_id-{job}");
    let output = world.run_crash_hooks(&run).await;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    let expected = (false, true, "datasetOnArchiveDisk".to_owned(), "datasetRetrievalFailed".to_owned());
    assert_eq!(world.fate(PID), expected);
}

#[tokio::test]
async fn a_job_that_was_not_begun_is_told_too() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.scicat.faults().add(Fault::on("PATCH").containing("/jobs/").delay(forever()));
    let job = world.archive_job(&[PID]);
    let process = world.spawn(ARCHIVE_FLOW, &job);
    let run = format!("archive_datasetlist-job_id-{job}");
    world
        .until("the run has begun", |world| {
            world.prefect.records().flow_runs.iter().any(|it| it["name"] == run.as_str())
        })
        .await;
    process.kill();
    world.scicat.faults().clear();
    assert!(world.run_crash_hooks(&run).await.status.success());
    assert_eq!(world.history(&job)[1..], ["finishedUnsuccessful"]);
    assert_eq!(world.fate(PID).2, "datasetCreated");
}
