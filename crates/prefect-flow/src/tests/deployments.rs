//! Runs of deployments that a flow starts.

use std::time::Duration;

use serde_json::json;

use super::{Bench, Greeting, greet};
use crate::deployment_run::DeploymentRunError;
use crate::engine::End;
use crate::error::BoxError;

const DEPLOYMENT: &str = "b04f019f-5234-4e2b-8ddd-49c06f0b2d44";

async fn bench() -> Bench {
    let bench = Bench::with(|options| options.wait_interval = Duration::from_millis(10)).await;
    let mut inner = bench.fake.lock();
    let flow_id = inner.flow_id("Called-flow");
    inner
        .deployments
        .insert(DEPLOYMENT.to_owned(), json!({"id": DEPLOYMENT, "name": "daily", "flow_id": flow_id}));
    drop(inner);
    bench
}

/// The run of the deployment, when there is one.
fn called(inner: &super::fake::Inner) -> Option<String> {
    inner.runs.iter().find(|(_, run)| run.record["deployment_id"] == DEPLOYMENT).map(|(id, _)| id.clone())
}

fn end_called(bench: &Bench, kind: &str, name: &str) {
    let mut inner = bench.fake.lock();
    let id = called(&inner).unwrap();
    inner.set_state_type(&id, kind);
    let record = &mut inner.runs.get_mut(&id).unwrap().record;
    record["state_name"] = json!(name);
    record["state"] = json!({"id": uuid::Uuid::new_v4(), "type": kind, "name": name,
        "timestamp": "2026-11-22T04:47:05.571364Z", "message": "as the test wants it", "state_details": {}});
}

#[tokio::test(flavor = "multi_thread")]
async fn have_a_place_in_the_graph_and_are_waited_for() {
    let bench = bench().await;
    let flow = greet(|ctx, _| async move {
        let first = ctx.task("first").run(|_| async { Ok::<_, BoxError>(3) }).await?;
        let parameters = Greeting { name: "them".to_owned(), count: *first };
        let run = ctx
            .run_deployment("Called-flow/daily")
            .parameters(&parameters)
            .name("today")
            .tag("nightly")
            .input("count", &first)
            .await?;
        ctx.task("last").wait_for(&run).run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok(())
    });
    let complete = async {
        bench.fake.until(|inner| called(inner).is_some()).await;
        end_called(&bench, "COMPLETED", "Completed");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), complete);
    assert!(matches!(end.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    let parent = &inner.task_runs[0];
    assert_eq!(parent["task_key"], "prefect.deployments.flow_runs.run_deployment.called-flow-daily");
    assert_eq!(parent["dynamic_key"], "0");
    assert_eq!(parent["task_inputs"]["count"][0]["input_type"], "task_run");
    let asked = &inner.calls_to("POST", "create_flow_run")[0];
    assert_eq!(asked["parent_task_run_id"], parent["id"]);
    assert_eq!(asked["parameters"], json!({"name": "them", "count": 3}));
    assert_eq!((&asked["name"], &asked["tags"]), (&json!("today"), &json!(["nightly"])));
    assert_eq!(asked["state"]["type"], "SCHEDULED");
    let key = format!("{}-1", parent["id"].as_str().unwrap());
    assert_eq!(asked["idempotency_key"], key, "a lost answer does not make a second run");
    assert_eq!(inner.task_states().last().unwrap(), "last: Completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_fail_are_errors() {
    let bench = bench().await;
    let flow = greet(|ctx, _| async move { Ok(ctx.run_deployment("Called-flow/daily").await.map(drop)?) });
    let fail = async {
        bench.fake.until(|inner| called(inner).is_some()).await;
        end_called(&bench, "FAILED", "TimedOut");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), fail);
    assert!(matches!(end.unwrap(), End::Failed(_)));
    assert!(bench.fake.lock().last_message(&bench.run).ends_with(
        "run 'versed-caracal' of deployment 'Called-flow/daily' ended as TimedOut: as the test wants it"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn can_be_left_to_themselves_and_must_exist() {
    let bench = bench().await;
    let flow = greet(|ctx, _| async move {
        ctx.run_deployment("Called-flow/daily").start().await?;
        for name in ["Called-flow/nightly", "none"] {
            let error = ctx.run_deployment(name).start().await.unwrap_err();
            assert!(matches!(error, DeploymentRunError::Missing { .. }), "{error}");
        }
        let error = ctx.run_deployment("Called-flow/daily").parameters(&3).start().await.unwrap_err();
        assert!(matches!(error, DeploymentRunError::Parameters { .. }), "{error}");
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.calls_to("POST", "create_flow_run").len(), 1);
}
