//! `archive_datasetlist`.

use std::time::Duration;

use serde_json::json;
use testkit::faults::Fault;
use testkit::process::{Output, Signal};

use crate::prefect::set_state;
use crate::world::{ARCHIVE, LANDING, World};

const PID: &str = "20.500.12345/gold-0001";
const RUN: &str = "archive_dataset-dataset_id-20.500.12345/gold-0001";
/// Three datablocks of at most 1 KiB.
const FILES: [(&str, usize); 4] =
    [("a/1.txt", 800), ("a/empty.txt", 0), ("b/2.txt", 900), ("c ü/3.txt", 700)];

const FLOW: &str = "archive_datasetlist";

async fn archived() -> (World, String, Output) {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    let job = world.archive_job(&[PID]);
    let output = world.run_job(FLOW, &job).await;
    (world, job, output)
}

#[tokio::test]
async fn a_dataset_is_stored_verified_registered_and_only_then_leaves_the_landing_zone() {
    let (world, job, output) = archived().await;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedSuccessful"]);
    assert_eq!(world.fate(PID), (false, true, "datasetOnArchiveDisk".to_owned(), String::new()));
    assert_eq!(world.keys(LANDING), [""; 0]);

    let tars = world
        .s3
        .store()
        .objects(ARCHIVE, "openem-network/datasets/20.500.12345/gold-0001/datablocks/")
        .unwrap();
    let datablocks = world.scicat.catalogue().datablocks(PID);
    assert_eq!((tars.len(), datablocks.len()), (3, 3));
    for (tar, datablock) in tars.iter().zip(&datablocks) {
        assert_eq!(datablock["archiveId"], tar.key);
        assert_eq!(datablock["packedSize"], tar.size);
        assert_eq!(tar.class, "GLACIER");
    }
    assert_eq!(datablocks[0]["dataFileList"][0]["path"], "a/1.txt");

    // The general endpoint would reset what it is not told: only the merging one is used.
    insta::assert_snapshot!(world.changes().join("\n").replace(&job, "JOB"));
}

#[tokio::test]
async fn the_run_page_shows_the_steps_under_their_names() {
    let (world, job, output) = archived().await;
    assert!(output.status.success(), "{}", output.stderr);
    insta::assert_snapshot!(world.prefect.task_runs().join("\n").replace(&job, "JOB"));
    let root = format!("archive_datasetlist-job_id-{job}");
    assert_eq!(world.prefect.flow_run(&root).0, "Completed");
    assert_eq!(world.prefect.flow_run(RUN).0, "Completed");
    let progress = world.prefect.artifact("archive-20-500-12345-gold-0001").unwrap();
    assert_eq!((progress["type"].as_str(), progress["data"].as_f64()), (Some("progress"), Some(100.0)));
    assert!(world.prefect.logged("stored 20.500.12345-gold-0001_0.tar: 2 files, 800 bytes"));
    assert!(world.prefect.logged("the store's ETag binds its content"));
    for secret in [world.s3.secret_key(), world.scicat.password()] {
        assert!(!world.prefect.logged(secret) && !output.stderr.contains(secret), "a secret was logged");
    }
}

#[tokio::test]
async fn copies_in_a_readable_class_are_read_back() {
    let mut world = World::start().await;
    world.set("S3_ARCHIVAL_STORAGE_CLASS", "STANDARD");
    world.add_dataset(PID, &FILES);
    let job = world.archive_job(&[PID]);
    assert!(world.run_job(FLOW, &job).await.status.success());
    assert!(world.prefect.logged("read back and compared file by file"));
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
}

#[tokio::test]
async fn a_listed_file_that_is_missing_is_the_users_error_and_nothing_is_begun() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.claim(PID, &[("d/absent.txt", 5)]);
    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    assert_eq!(world.fate(PID).2, "missingFilesError");
    world.assert_untouched(PID, &FILES);
    let (state, message) = world.prefect.flow_run(RUN);
    assert_eq!(state, "Failed");
    assert!(message.contains("\"d/absent.txt\" is missing"), "{message}");
    assert!(world.prefect.logged("hint: upload the listed files again"));
}

#[tokio::test]
async fn an_empty_landing_zone_is_told_as_such() {
    let world = World::start().await;
    world.scicat.catalogue().create_dataset(PID);
    world.claim(PID, &FILES);
    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.fate(PID).2, "missingFilesError");
    assert!(world.prefect.flow_run(RUN).1.contains("there are no files in the landing zone"));
}

#[tokio::test]
async fn a_dataset_that_fails_does_not_stop_the_others() {
    let world = World::start().await;
    world.scicat.catalogue().create_dataset("20.500.12345/empty");
    world.claim("20.500.12345/empty", &[("x", 1)]);
    world.add_dataset(PID, &FILES);
    let job = world.archive_job(&["20.500.12345/empty", PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedWithDatasetErrors"]);
    assert_eq!(world.fate("20.500.12345/empty").2, "missingFilesError");
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
    let (state, message) = world.prefect.flow_run(&format!("archive_datasetlist-job_id-{job}"));
    assert_eq!(state, "Failed");
    assert!(
        message.contains("archive 1 of 2 datasets of job") && message.contains("20.500.12345/empty ("),
        "{message}"
    );
}

/// Runs a job that fails by system error, and asserts that no trace of it is left.
async fn fails_without_a_trace(world: &World) -> String {
    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    assert_eq!(world.fate(PID), (true, false, "scheduleArchiveJobFailed".to_owned(), String::new()));
    world.assert_untouched(PID, &FILES);
    world.prefect.flow_run(RUN).1
}

#[tokio::test]
async fn a_refused_upload_takes_the_datablocks_before_it_along() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world
        .s3
        .faults()
        .add(Fault::on("PutObject").containing("_1.tar").times(u32::MAX).error("AccessDenied", 403));
    let message = fails_without_a_trace(&world).await;
    assert!(message.contains("AccessDenied"), "{message}");
}

#[tokio::test]
async fn a_refused_registration_takes_the_registered_datablocks_along() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.scicat.faults().add(Fault::on("POST").containing("/datablocks").nth(2).times(u32::MAX).status(403));
    fails_without_a_trace(&world).await;
    let deletions = world.changes().into_iter().filter(|change| change.starts_with("DELETE")).count();
    assert_eq!(deletions, 1, "only the datablock of this run was to be deleted");
}

#[tokio::test]
async fn a_copy_that_is_not_what_was_uploaded_is_found_and_removed() {
    let mut world = World::start().await;
    world.set("S3_ARCHIVAL_STORAGE_CLASS", "STANDARD");
    world.add_dataset(PID, &FILES);
    // Time to damage the copy between its storage and its verification.
    let late = Fault::on("PutObject").containing("_0.tar").delay(Duration::from_secs(2)).after_effect();
    world.s3.faults().add(late);
    let damage = async {
        world.until("the first datablock is stored", |world| world.keys(ARCHIVE).len() == 1).await;
        let key = world.s3.store().objects(ARCHIVE, "").unwrap().remove(0).key;
        world.s3.store().corrupt(ARCHIVE, &key).unwrap();
    };
    let (message, ()) = tokio::join!(fails_without_a_trace(&world), damage);
    assert!(message.contains("verify") && message.contains("_0.tar"), "{message}");
}

#[tokio::test]
async fn a_registration_whose_answer_is_lost_is_made_once() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.scicat.faults().add(Fault::on("POST").containing("/datablocks").drop_connection().after_effect());
    let job = world.archive_job(&[PID]);
    let output = world.run_job(FLOW, &job).await;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.scicat.catalogue().datablocks(PID).len(), 3);
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
}

#[tokio::test]
async fn a_catalogue_that_does_not_know_the_job_is_quoted() {
    let world = World::start().await;
    let job = "0f0e0d0c-0b0a-0908-0706-050403020100";
    assert!(!world.run_job(FLOW, job).await.status.success());
    let (state, message) = world.prefect.flow_run(&format!("archive_datasetlist-job_id-{job}"));
    assert_eq!(state, "Failed");
    assert!(message.contains(job), "{message}");
}

#[tokio::test]
async fn a_dataset_that_cannot_be_declared_archived_is_as_before() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    // The change takes effect, but is answered by a refusal: the worst case.
    world
        .scicat
        .faults()
        .add(Fault::on("PATCH").containing("datasetlifecycle").nth(2).status(400).after_effect());
    fails_without_a_trace(&world).await;
}

#[tokio::test]
async fn an_archived_dataset_is_refused_and_stays_as_it_is() {
    let (world, _, output) = archived().await;
    assert!(output.status.success(), "{}", output.stderr);
    world.upload(PID, &FILES);
    let (datablocks, tars) =
        (world.scicat.catalogue().datablocks(PID), world.s3.store().objects(ARCHIVE, "").unwrap());
    let etags = |tars: &[testkit::s3::ObjectInfo]| {
        tars.iter().map(|tar| (tar.key.clone(), tar.etag.clone())).collect::<Vec<_>>()
    };
    world.scicat.catalogue().clear_requests();

    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    assert_eq!(world.fate(PID), (false, true, "datasetOnArchiveDisk".to_owned(), String::new()));
    assert_eq!(world.scicat.catalogue().datablocks(PID), datablocks);
    assert_eq!(etags(&world.s3.store().objects(ARCHIVE, "").unwrap()), etags(&tars));
    assert_eq!(world.keys(LANDING).len(), FILES.len());
    assert!(world.changes().iter().all(|change| change.contains("/jobs/")), "{:?}", world.changes());
}

#[tokio::test]
async fn a_landing_zone_that_cannot_be_emptied_fails_nothing() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    let refused =
        |operation: &str| Fault::on(operation).containing(LANDING).times(u32::MAX).error("AccessDenied", 403);
    world.s3.faults().add(refused("DeleteObject"));
    world.s3.faults().add(refused("DeleteObjects"));
    let job = world.archive_job(&[PID]);
    assert!(world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedSuccessful"]);
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
    assert_eq!(world.scicat.catalogue().datablocks(PID).len(), 3);
    assert!(world.prefect.logged("could not be emptied"));
}

/// A world in which the second upload takes effect, but is never answered; up to that moment.
async fn stuck() -> (World, String, testkit::process::Process) {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world
        .s3
        .faults()
        .add(Fault::on("PutObject").containing("_1.tar").delay(Duration::from_mins(10)).after_effect());
    let job = world.archive_job(&[PID]);
    let process = world.spawn(FLOW, &job);
    world.until("the second datablock is stored", |world| world.keys(ARCHIVE).len() == 2).await;
    (world, job, process)
}

fn assert_undone(world: &World, job: &str) {
    assert_eq!(world.history(job)[1..], ["inProgress", "finishedUnsuccessful"]);
    assert_eq!(world.fate(PID), (true, false, "scheduleArchiveJobFailed".to_owned(), String::new()));
    world.assert_untouched(PID, &FILES);
}

#[tokio::test]
async fn a_cancelled_run_is_undone_and_told() {
    let (world, job, mut process) = stuck().await;
    let root = format!("archive_datasetlist-job_id-{job}");
    {
        let mut records = world.prefect.records();
        let run = records.flow_runs.iter_mut().find(|run| run["name"] == root.as_str()).unwrap();
        set_state(run, &json!({"type": "CANCELLING", "name": "Cancelling"}));
    }
    let status = process.wait(Duration::from_secs(90)).await.unwrap();
    assert_eq!(world.prefect.flow_run(&root).0, "Cancelled", "{status}: {}", process.log());
    assert_undone(&world, &job);
}

#[tokio::test]
async fn a_terminated_run_is_undone_and_told() {
    let (world, job, mut process) = stuck().await;
    process.signal(Signal::Terminate).unwrap();
    process.wait(Duration::from_secs(90)).await.unwrap();
    assert_eq!(world.prefect.flow_run(&format!("archive_datasetlist-job_id-{job}")).0, "Crashed");
    assert_undone(&world, &job);
}

#[tokio::test]
async fn only_the_wanted_datasets_are_archived() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.add_dataset("20.500.12345/other", &[("o", 1)]);
    let job = world.archive_job(&[PID, "20.500.12345/other"]);
    let parameters = [("job_id", json!(job)), ("dataset_ids", json!(["20.500.12345/other"]))];
    assert!(world.run(FLOW, &parameters).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedSuccessful"]);
    assert_eq!(world.fate("20.500.12345/other").2, "datasetOnArchiveDisk");
    assert_eq!(world.fate(PID).2, "datasetCreated");

    let parameters = [("job_id", json!(job)), ("dataset_ids", json!(["20.500.12345/stranger"]))];
    assert!(!world.run(FLOW, &parameters).await.status.success());
    assert!(world.prefect.logged("20.500.12345/stranger is not in job"));
    assert_eq!(world.history(&job)[3..], ["inProgress", "finishedUnsuccessful"]);
}

const OTHER: &str = "0f0e0d0c-0b0a-0908-0706-050403020100";

/// Makes Prefect know of another run that archives the dataset, started by the flow run `parent`.
fn add_other_run(world: &World, parent: Option<&str>) {
    let (flow, task) = ("0f0e0d0c-0b0a-0908-0706-050403020101", "0f0e0d0c-0b0a-0908-0706-050403020103");
    let mut other = json!({"id": OTHER, "name": RUN, "flow_id": flow});
    set_state(&mut other, &json!({"type": "RUNNING", "name": "Running"}));
    let mut records = world.prefect.records();
    if let Some(parent) = parent {
        other["parent_task_run_id"] = json!(task);
        records.task_runs.push(
            json!({"id": task, "name": "t", "task_key": "t", "dynamic_key": "0", "flow_run_id": parent}),
        );
    }
    // The last of a name is the one that is looked at.
    records.flow_runs.insert(0, other);
}

/// Makes Prefect know of the run of a job.
fn add_parent(world: &World, state: &str) -> &'static str {
    let parent = "0f0e0d0c-0b0a-0908-0706-050403020102";
    let flow = "0f0e0d0c-0b0a-0908-0706-050403020101";
    let mut run = json!({"id": parent, "name": "archive_datasetlist-job_id-x", "flow_id": flow});
    set_state(&mut run, &json!({"type": state.to_uppercase(), "name": state}));
    world.prefect.records().flow_runs.push(run);
    parent
}

#[tokio::test]
async fn a_dataset_that_another_run_archives_is_left_to_it() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    add_other_run(&world, Some(add_parent(&world, "Running")));
    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.history(&job)[1..], ["inProgress", "finishedUnsuccessful"]);
    let (state, message) = world.prefect.flow_run(RUN);
    assert_eq!(state, "Failed");
    assert!(message.contains(&format!("flow run {OTHER} is archiving it")), "{message}");
    assert!(world.prefect.logged("hint: only one run at a time may archive a dataset"));
    assert!(world.changes().iter().all(|change| change.contains("/jobs/")), "{:?}", world.changes());
    world.assert_untouched(PID, &FILES);
}

#[tokio::test]
async fn a_dead_run_does_not_keep_a_dataset_from_being_archived() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    add_other_run(&world, Some(add_parent(&world, "Crashed")));
    let job = world.archive_job(&[PID]);
    assert!(world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
}

#[tokio::test]
async fn what_an_earlier_attempt_of_the_same_job_left_does_not_count_as_another_run() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    world.scicat.faults().add(Fault::on("PATCH").containing("/jobs/").delay(Duration::from_secs(2)));
    let job = world.archive_job(&[PID]);
    let root = format!("archive_datasetlist-job_id-{job}");
    let id = |world: &World| {
        let records = world.prefect.records();
        let run = records.flow_runs.iter().find(|run| run["name"] == root.as_str())?;
        run["id"].as_str().map(str::to_owned)
    };
    let leave_one_behind = async {
        world.until("the job has a run", |world| id(world).is_some()).await;
        add_other_run(&world, id(&world).as_deref());
    };
    let (output, ()) = tokio::join!(world.run_job(FLOW, &job), leave_one_behind);
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(world.fate(PID).2, "datasetOnArchiveDisk");
}

/// Registers a datablock of a run that is not at work any more, which holds these files.
fn register(world: &World, files: &[(&str, usize)]) {
    let entry =
        |(path, size): &(&str, usize)| json!({"path": path, "size": size, "time": "2026-01-01T00:00:00Z"});
    let files: Vec<_> = files.iter().map(entry).collect();
    let datablock = json!({
        "archiveId": "openem-network/datasets/20.500.12345/gold-0001/datablocks/other.tar",
        "size": 800, "packedSize": 2048, "version": "1.0", "dataFileList": files,
    });
    world.scicat.catalogue().add_datablock(PID, &datablock);
}

#[tokio::test]
async fn a_run_that_finds_itself_overtaken_leaves_the_lifecycle_to_the_other() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    // Time for the other run to register its datablock and to declare the dataset archived.
    let late = Fault::on("PutObject").containing("_0.tar").delay(Duration::from_secs(2)).after_effect();
    world.s3.faults().add(late);
    let overtake = async {
        world.until("the first datablock is stored", |world| world.keys(ARCHIVE).len() == 1).await;
        register(&world, &FILES);
        let archived =
            json!({"archivable": false, "retrievable": true, "archiveStatusMessage": "datasetOnArchiveDisk"});
        world.scicat.catalogue().patch_dataset(PID, &json!({"datasetlifecycle": archived}));
    };
    let job = world.archive_job(&[PID]);
    let (output, ()) = tokio::join!(world.run_job(FLOW, &job), overtake);
    assert!(!output.status.success());
    let message = world.prefect.flow_run(RUN).1;
    assert!(message.contains("it is archived already"), "{message}");
    assert_eq!(world.fate(PID), (false, true, "datasetOnArchiveDisk".to_owned(), String::new()));
    assert_eq!(world.keys(ARCHIVE), [""; 0], "the tars of the run that gave way are left");
    assert_eq!(world.scicat.catalogue().datablocks(PID).len(), 1);
    assert_eq!(world.keys(LANDING).len(), FILES.len());
}

#[tokio::test]
async fn a_dataset_that_a_dead_run_half_registered_is_told_to_have_failed() {
    let world = World::start().await;
    world.add_dataset(PID, &FILES);
    register(&world, &FILES[..1]);
    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.fate(PID), (true, false, "scheduleArchiveJobFailed".to_owned(), String::new()));
    assert_eq!(world.scicat.catalogue().datablocks(PID).len(), 1);
    assert_eq!(world.keys(LANDING).len(), FILES.len());
}

#[tokio::test]
async fn files_that_come_after_a_dataset_was_archived_do_not_change_its_fate() {
    let (world, _, output) = archived().await;
    assert!(output.status.success(), "{}", output.stderr);
    world.upload(PID, &[("late.txt", 7)]);
    let job = world.archive_job(&[PID]);
    assert!(!world.run_job(FLOW, &job).await.status.success());
    assert_eq!(world.fate(PID), (false, true, "datasetOnArchiveDisk".to_owned(), String::new()));
}

#[tokio::test]
async fn a_dataset_with_an_unusual_id_is_archived() {
    let world = World::start().await;
    let pid = "20.500.12345/Größe (neu)_2+α.tar";
    world.add_dataset(pid, &[("o", 1)]);
    let job = world.archive_job(&[pid]);
    let output = world.run_job(FLOW, &job).await;
    assert!(output.status.success(), "{}", output.stderr);
    assert!(world.prefect.artifact("archive-20-500-12345-gr--e--neu--2--").is_some());
}
