//! What an archival does to the stores and the catalogue when something is wrong, against real servers.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use e2e::dataset::Dataset;
use e2e::local::{Local, archive_prefix, landing_prefix};
use e2e::s3;
use e2e::stack::{ARCHIVE, LANDING_ZONE};
use serde_json::json;
use testkit::faults::Fault;

fn dataset(root: &std::path::Path) -> Dataset {
    std::fs::write(root.join("one.txt"), "one").unwrap();
    std::fs::write(root.join("two.txt"), "two").unwrap();
    Dataset::of_directory(root).unwrap()
}

async fn landed(local: &Local, pid: &str) -> usize {
    s3::list(&local.s3_client(), LANDING_ZONE, &landing_prefix(pid)).await.unwrap().len()
}

async fn archived(local: &Local, pid: &str) -> usize {
    s3::list(&local.s3_client(), ARCHIVE, &archive_prefix(pid)).await.unwrap().len()
}

/// A failed archival: the job says so, the landing zone is as it was, nothing is left in archive or catalogue.
async fn assert_undone(local: &Local, pid: &str, job: &serde_json::Value, landed_before: usize) {
    assert_eq!(job["statusMessage"], "finishedUnsuccessful");
    assert_eq!(landed(local, pid).await, landed_before, "the landing zone was touched");
    assert_eq!(archived(local, pid).await, 0, "a tar was left");
    assert!(local.scicat.catalogue().datablocks(pid).is_empty(), "a datablock was left");
    assert!(local.s3.store().uploads(ARCHIVE).unwrap().is_empty(), "an upload was left");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_and_broken_servers_leave_nothing_half_done() {
    let local = Local::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = dataset(folder.path());
    let catalogue = local.scicat.catalogue();

    // An empty landing zone.
    let pid = "20.500.12345/empty";
    catalogue.create_dataset(pid);
    catalogue.add_origdatablock(pid, &files.claims());
    let (output, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_undone(&local, pid, &job, 0).await;
    assert!(output.stderr.contains("landing zone"), "{}", output.stderr);

    // A file that the catalogue lists and the landing zone lacks.
    let pid = "20.500.12345/missing";
    local.ingest(pid, &files).await.unwrap();
    catalogue
        .add_origdatablock(pid, &[json!({"path": "three.txt", "size": 5, "time": "2026-01-01T00:00:00Z"})]);
    let (output, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_undone(&local, pid, &job, 2).await;
    assert!(output.stderr.contains("three.txt"), "{}", output.stderr);
    assert_eq!(catalogue.lifecycle(pid).unwrap()["archiveStatusMessage"], "missingFilesError");

    // An archive that refuses to store.
    let pid = "20.500.12345/refused";
    local.ingest(pid, &files).await.unwrap();
    local
        .s3
        .faults()
        .add(Fault::on("PutObject").containing("datablocks").times(u32::MAX).error("AccessDenied", 403));
    local.s3.faults().add(Fault::on("CreateMultipartUpload").times(u32::MAX).error("AccessDenied", 403));
    let (_, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_undone(&local, pid, &job, 2).await;
    assert_eq!(catalogue.lifecycle(pid).unwrap()["archiveStatusMessage"], "scheduleArchiveJobFailed");
    local.s3.faults().clear();

    // A catalogue that refuses to register.
    catalogue.faults().add(Fault::on("POST").containing("/datablocks").times(u32::MAX).status(500));
    let (_, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_undone(&local, pid, &job, 2).await;
    catalogue.faults().clear();

    // And then it works, on the very dataset that failed twice.
    let (output, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_eq!(job["statusMessage"], "finishedSuccessful", "{}", output.stderr);
    assert_eq!((landed(&local, pid).await, archived(&local, pid).await), (0, 1));
    local.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_archival_never_touches_the_first() {
    let local = Local::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = dataset(folder.path());
    let pid = "20.500.12345/twice";
    local.ingest(pid, &files).await.unwrap();
    let (output, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_eq!(job["statusMessage"], "finishedSuccessful", "{}", output.stderr);
    let before = (local.scicat.catalogue().datablocks(pid), local.scicat.catalogue().lifecycle(pid));
    let bytes = local.s3.store().get(ARCHIVE, before.0[0]["archiveId"].as_str().unwrap()).unwrap();

    // The landing zone is empty now, then filled again with something else: both must fail without a trace.
    for refill in [false, true] {
        if refill {
            std::fs::write(folder.path().join("one.txt"), "other").unwrap();
            let changed = Dataset::of_directory(folder.path()).unwrap();
            changed.upload(&local.s3_client(), LANDING_ZONE, &landing_prefix(pid), |_| {}).await.unwrap();
        }
        let (_, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
        assert_eq!(job["statusMessage"], "finishedUnsuccessful");
        let after = (local.scicat.catalogue().datablocks(pid), local.scicat.catalogue().lifecycle(pid));
        assert_eq!(before, after);
        let key = before.0[0]["archiveId"].as_str().unwrap().to_owned();
        assert_eq!(local.s3.store().get(ARCHIVE, &key).unwrap(), bytes);
        assert_eq!(landed(&local, pid).await, if refill { 2 } else { 0 });
    }
    local.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_what_was_sent_keeps_the_landing_zone() {
    let local = Local::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = dataset(folder.path());
    let pid = "20.500.12345/doubtful";
    local.ingest(pid, &files).await.unwrap();
    // The store answers every look at the archived copy with a failure: it cannot be verified.
    local
        .s3
        .faults()
        .add(Fault::on("HeadObject").containing("datablocks").times(u32::MAX).error("AccessDenied", 403));
    let (_, job) = local.run("archive_datasetlist", "archive", pid).await.unwrap();
    assert_eq!(job["statusMessage"], "finishedUnsuccessful");
    assert_eq!(landed(&local, pid).await, 2, "deleted although nothing was verified");
    assert!(local.scicat.catalogue().datablocks(pid).is_empty());
    local.stop().await.unwrap();
}
