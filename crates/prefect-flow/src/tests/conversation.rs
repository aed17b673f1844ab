//! The whole conversation of one run, as the server sees it.

use serde_json::{Value, json};

use super::{Bench, Greeting, Outcome, greet, redact};
use crate::error::BoxError;
use crate::{Context, Flow};

async fn body(ctx: Context, greeting: Greeting) -> Outcome {
    let word: Option<String> = ctx.variable("word").await?;
    let extract = ctx.task("extract").run(|task| async move {
        task.info("extracting");
        Ok::<_, BoxError>(3)
    });
    let extract = extract.await?;
    let attempts = std::sync::atomic::AtomicU32::new(0);
    let load = ctx
        .task("load")
        .run_name(format!("load-{}", greeting.name))
        .tags(["db"])
        .retries(1, std::time::Duration::ZERO)
        .input("n", &extract)
        .run(|_| async {
            match attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Err("not yet"),
                _ => Ok(()),
            }
        })
        .await?;
    let check = ctx.task("check").wait_for(&load).run(|_| async { Err::<(), _>("x") }).await;
    assert!(check.is_err());
    ctx.markdown("report", format!("{} {}", word.unwrap_or_default(), greeting.name), Some("what")).await?;
    Ok(())
}

fn flow() -> Flow<Greeting> {
    greet(body).run_name("greet-{name}-{count}").retries(2, std::time::Duration::from_secs(7))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_deployments_run_is_that_of_the_contract() {
    let bench = Bench::new().await;
    let deployment = "b04f019f-5234-4e2b-8ddd-49c06f0b2d44";
    {
        let mut inner = bench.fake.lock();
        let id = bench.run.clone();
        inner.runs.get_mut(&id).unwrap().record["deployment_id"] = json!(deployment);
        let flow_id = inner.flow_id("greet");
        inner.deployments.insert(
            deployment.to_owned(),
            json!({"id": deployment, "name": "daily", "flow_id": flow_id,
                "entrypoint": "./flows/greet.py:greet",
                "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": "/nonexistent"}}]}),
        );
        inner.variables.insert("word".to_owned(), json!("hello"));
        inner.answers.push_back(json!({"status": "ACCEPT", "details": {},
            "state_details": {"deployment_concurrency_lease_id": "65a2b08d-7591-43e3-895b-896f664a2492"}}));
    }
    let end = bench.execute(flow()).await.unwrap();
    assert!(matches!(end, crate::engine::End::Completed(_)));
    let inner = bench.fake.lock();
    let mut told = Vec::new();
    let mut besides = Vec::new();
    for call in &inner.calls {
        let line = json!([call.method, call.path, call.body]);
        // What reports beside the run may come at any time; of reads that go out together either may be first.
        let beside = ["/logs/", "/artifacts/", "/v2/"].iter().any(|part| call.path.starts_with(part));
        if beside { besides.push(line) } else { told.push(line) }
    }
    told[1..3].sort_by_key(ToString::to_string);
    besides.sort_by_key(ToString::to_string);
    told.extend(besides);
    insta::assert_json_snapshot!("rest", redact(Value::Array(told)));
    let mut events = inner.events.clone();
    // The heartbeat goes out beside the first task.
    events.sort_by_key(|event| event["event"] != "prefect.flow-run.heartbeat");
    insta::assert_json_snapshot!("events", redact(Value::Array(events)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_by_hand_creates_flow_and_run() {
    let bench = Bench::new().await;
    let program =
        crate::Program::new("test", "1.0").flow(greet(|_, _| async { Ok(()) }).run_name("by-{name}"));
    let flow = program.find("greet").unwrap();
    let given = json!({"name": "hand"}).as_object().unwrap().clone();
    crate::engine::run_by_hand(&bench.engine, flow, &given).await.unwrap();
    bench.engine.close().await;
    let inner = bench.fake.lock();
    let calls: Vec<Value> =
        inner.calls.iter().map(|call| json!([call.method, call.path, call.body])).collect();
    insta::assert_json_snapshot!("by_hand", redact(Value::Array(calls)));
}
