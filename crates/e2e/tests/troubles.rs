//! Runs that end otherwise than well, in containers, on a real Prefect server.

mod common;

use std::time::Duration;

use common::{end, ingest, s3_client, stack, trigger_archival};
use e2e::local::{archive_prefix, landing_prefix};
use e2e::stack::{ARCHIVE, LANDING_ZONE, POOLS};
use e2e::{containers, runs, s3};
use prefect_api::state::{NewState, StateType};
use serde_json::json;
use testkit::faults::Fault;

const RUN: Duration = Duration::from_mins(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_archival_is_undone_in_its_container() {
    let (engine, mut stack) = stack("cancelled").await;
    stack.start_worker(POOLS[0]).await.unwrap();
    let pid = "20.500.12345/cancelled";
    ingest(&stack, pid).await;
    stack.s3.faults().add(Fault::on("GetObject").times(u32::MAX).delay(Duration::from_mins(10)));
    let (job, run) = trigger_archival(&stack, pid).await;

    // It has the landing zone's first object half read when it is cancelled as the UI does it.
    let prefect = stack.prefect.clone();
    let reading = async {
        while stack.s3.faults().struck() == 0 {
            prefect.read_flow_run(run.id).await.unwrap();
        }
    };
    tokio::time::timeout(RUN, reading).await.expect("the archival never began to read");
    stack.prefect.set_flow_run_state(run.id, &NewState::new(StateType::Cancelling), true).await.unwrap();
    let ended = runs::wait(&stack.prefect, run.id, RUN, |_| {}).await.unwrap();

    assert_eq!(ended.state_type, Some(StateType::Cancelled));
    let containers = containers::of_run(stack.engine.api(), run.id).await.unwrap();
    assert_eq!(engine.wait(&containers[0], RUN).await.unwrap(), 0, "a cancelled run is no failed container");
    let job = stack.scicat.catalogue().job(&job).unwrap();
    assert_eq!(job["statusMessage"], "finishedUnsuccessful");
    let client = s3_client(&stack);
    assert_eq!(s3::list(&client, LANDING_ZONE, &landing_prefix(pid)).await.unwrap().len(), 1);
    assert!(s3::list(&client, ARCHIVE, &archive_prefix(pid)).await.unwrap().is_empty());
    assert!(stack.s3.store().uploads(ARCHIVE).unwrap().is_empty(), "an upload was left");
    assert!(stack.scicat.catalogue().datablocks(pid).is_empty());
    end(engine, stack, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_and_a_killed_container_crash_their_runs() {
    let (engine, mut stack) = stack("crashed").await;
    let worker = stack.start_worker(POOLS[0]).await.unwrap();
    let found =
        stack.prefect.read_deployment_by_name("archive_datasetlist", "datasets_archival").await.unwrap();
    let deployment = found.unwrap().id;
    let path = format!("deployments/{deployment}/create_flow_run");
    let parameters = json!({"job_id": "00000000-0000-0000-0000-000000000000"});
    let body = json!({"parameters": parameters, "job_variables": {"image": "ferryman/none:0"}});
    let run: prefect_api::flow_run::FlowRun =
        serde_json::from_value(stack.prefect.post_json(&path, &body).await.unwrap()).unwrap();
    let ended = runs::wait(&stack.prefect, run.id, RUN, |_| {}).await.unwrap();
    assert_eq!(ended.state_type, Some(StateType::Crashed));
    let message = ended.state.unwrap().message.unwrap();
    assert!(message.contains("ferryman/none:0"), "{message}");
    assert!(containers::of_run(stack.engine.api(), run.id).await.unwrap().is_empty());

    let pid = "20.500.12345/killed";
    ingest(&stack, pid).await;
    stack.s3.faults().add(Fault::on("GetObject").times(u32::MAX).delay(Duration::from_mins(10)));
    let (job, run) = trigger_archival(&stack, pid).await;
    let kill = async {
        loop {
            if stack.s3.faults().struck() > 0 {
                let ids = containers::of_run(stack.engine.api(), run.id).await.unwrap();
                containers::kill(stack.engine.api(), &ids[0]).await.unwrap();
                return;
            }
            stack.prefect.read_flow_run(run.id).await.unwrap();
        }
    };
    tokio::time::timeout(RUN, kill).await.expect("the archival never began to read");
    let ended = runs::wait(&stack.prefect, run.id, RUN, |_| {}).await.unwrap();
    assert_eq!(ended.state_type, Some(StateType::Crashed));
    let message = ended.state.unwrap().message.unwrap();
    assert!(message.contains("137"), "{message}");
    // The flow could tell nobody: its hook does, in a container of its own.
    let told = async {
        while stack.scicat.catalogue().job(&job).unwrap()["statusMessage"] != "finishedUnsuccessful" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let told = tokio::time::timeout(RUN, told).await;
    assert!(told.is_ok(), "{:#}", stack.scicat.catalogue().job(&job).unwrap());
    assert_eq!(s3::list(&s3_client(&stack), LANDING_ZONE, &landing_prefix(pid)).await.unwrap().len(), 1);

    // None of this is an illness of the worker, says the health check of its image.
    let healthy = async {
        loop {
            let health = engine.inspect(&worker).await.unwrap().state.unwrap().health;
            if health.and_then(|health| health.status).is_some_and(|status| status.to_string() == "healthy") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(RUN, healthy).await.expect("the worker's container is not healthy");
    end(engine, stack, None).await;
}
