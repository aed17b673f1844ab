//! Settings that are missing or wrong stop a run before its first side effect.

use std::time::Duration;

use serde_json::Value;
use testkit::process::Command;

use crate::world::World;

async fn assert_nothing_happens(world: &World, expected: &str) {
    let job = world.archive_job(&["20.500.12345/x"]);
    let output = world.run_job("archive_datasetlist", &job).await;
    assert!(!output.status.success());
    let (state, message) = world.prefect.flow_run(&format!("archive_datasetlist-job_id-{job}"));
    assert_eq!(state, "Failed");
    assert!(message.contains(expected), "{message}");
    assert!(world.scicat.catalogue().requests().is_empty(), "the catalogue was asked");
    assert!(world.s3.calls().is_empty(), "the store was asked");
}

#[tokio::test]
async fn missing_variables_are_all_named() {
    let world = World::start().await;
    world.prefect.records().variables.remove("s3_region");
    world.prefect.records().variables.remove("scicat_endpoint");
    assert_nothing_happens(&world, "S3_REGION, SCICAT_ENDPOINT are not set").await;
}

#[tokio::test]
async fn a_missing_secret_is_named() {
    let world = World::start().await;
    world.prefect.records().secrets.remove("scicat-password");
    assert_nothing_happens(&world, "--secrets SCICAT_PASSWORD_FILE").await;
}

#[tokio::test]
async fn links_that_would_live_too_long_are_refused() {
    let mut world = World::start().await;
    world.set("S3_URL_EXPIRATION_DAYS", "30");
    assert_nothing_happens(&world, "use variable S3_URL_EXPIRATION_DAYS with the value \"30\"").await;
}

#[tokio::test]
async fn a_wrong_password_is_told_without_quoting_it() {
    let world = World::start().await;
    world.prefect.records().secrets.insert("scicat-password".to_owned(), "hunter2".to_owned());
    let job = world.archive_job(&["20.500.12345/x"]);
    let output = world.run_job("archive_datasetlist", &job).await;
    let (state, message) = world.prefect.flow_run(&format!("archive_datasetlist-job_id-{job}"));
    assert_eq!(state, "Failed");
    assert!(message.contains("log in to the catalogue"), "{message}");
    assert!(!world.prefect.logged("hunter2") && !output.stderr.contains("hunter2"));
}

#[tokio::test]
async fn deployments_are_made_from_the_present_schemas() {
    let printed = Command::new(env!("CARGO_BIN_EXE_archiver-flows"))
        .args(["schema", "--all"])
        .output(Duration::from_secs(30))
        .await
        .unwrap();
    let printed: Value = serde_json::from_str(&printed.success().unwrap().stdout).unwrap();
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../../prefect/flows.json");
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(kept).unwrap()).unwrap();
    assert_eq!(
        printed, kept,
        "write prefect/flows.json anew: archiver-flows schema --all > prefect/flows.json"
    );
}
