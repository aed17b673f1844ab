//! Flow runs inside of flow runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bench, Greeting, greet, redact};
use crate::engine::End;
use crate::error::{BoxError, SubflowError};
use crate::{Context, Flow};

fn child() -> Flow<Greeting, u32> {
    Flow::new("child", |ctx: Context, greeting: Greeting| async move {
        let doubled = ctx.task("double").run(|_| async { Ok::<_, BoxError>(greeting.count * 2) }).await?;
        Ok::<_, BoxError>(doubled.into_value())
    })
    .run_name("child-{count}")
}

#[tokio::test(flavor = "multi_thread")]
async fn are_runs_of_their_own_that_a_task_run_stands_for() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let first = ctx.task("first").run(|_| async { Ok::<_, BoxError>(21) }).await?;
        let parameters = Greeting { name: "you".to_owned(), count: *first };
        let doubled = ctx.subflow(&child(), parameters).input("count", &first).await?;
        assert_eq!(*doubled, 42);
        ctx.task("last").wait_for(&doubled).run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    let from = inner.calls.iter().position(|call| call.path == "/task_runs/").unwrap();
    let calls: Vec<Value> = inner.calls[from..]
        .iter()
        .filter(|call| call.path != "/logs/")
        .map(|call| json!([call.method, call.path, call.body]))
        .collect();
    insta::assert_json_snapshot!("subflow", redact(Value::Array(calls)));
    let parent = inner.task_runs[0]["id"].as_str().unwrap();
    let about_parent = format!("prefect.task-run.{parent}");
    assert!(inner.events.iter().all(|event| event["resource"]["prefect.resource.id"] != about_parent));
    let last = inner.events.iter().rfind(|it| it["event"] == "prefect.task-run.Completed").unwrap();
    assert_eq!(last["payload"]["task_run"]["task_inputs"]["wait_for"][0]["id"], parent);
    assert!(inner.lines().contains(&"20 Beginning subflow run 'child-21' for flow 'child'".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn that_fail_are_errors_of_the_parent() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, greeting| async move {
        let bad = Flow::new("bad", |_, _: Greeting| async { Err::<(), BoxError>("sub failed".into()) });
        let error = ctx.subflow(&bad, greeting).await.unwrap_err();
        assert!(matches!(error, SubflowError::Failed { .. }));
        Err(error.into())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    assert_eq!(
        bench.fake.lock().last_message(&bench.run),
        "Flow run encountered an exception: run subflow 'versed-caracal' of flow 'bad': sub failed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn that_completed_with_other_parameters_do_not_count_when_the_parent_is_run_again() {
    let bench = Bench::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&runs);
    let flow = greet(move |ctx, _| {
        let counts = Arc::clone(&counts);
        async move {
            let attempt = ctx.attempt();
            let part = Flow::new("part", move |_, _: Greeting| {
                counts.fetch_add(1, Ordering::Relaxed);
                async move { Ok::<_, BoxError>(()) }
            });
            ctx.subflow(&part, Greeting { name: "you".to_owned(), count: attempt }).await?;
            if attempt == 1 { Err("broken".into()) } else { Ok::<_, BoxError>(()) }
        }
    })
    .retries(1, Duration::ZERO);
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(runs.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_completed_are_not_run_again_when_the_parent_is() {
    let bench = Bench::new().await;
    let runs = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let counts = Arc::clone(&runs);
    let flow = greet(move |ctx, _| {
        let counts = Arc::clone(&counts);
        async move {
            let part = |number: usize| {
                let counts = Arc::clone(&counts);
                Flow::new("part", move |_, _: Greeting| {
                    let before = counts[number].fetch_add(1, Ordering::Relaxed);
                    async move { if number == 1 && before == 0 { Err("broken") } else { Ok(()) } }
                })
            };
            let greeting = |count| Greeting { name: "you".to_owned(), count };
            ctx.subflow(&part(0), greeting(0)).await?;
            ctx.subflow(&part(1), greeting(1)).await?;
            Ok(())
        }
    })
    .retries(1, Duration::ZERO);
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(runs[0].load(Ordering::Relaxed), 1, "completed in the first attempt");
    assert_eq!(runs[1].load(Ordering::Relaxed), 2, "failed in the first attempt");
    let inner = bench.fake.lock();
    assert_eq!(inner.task_runs.len(), 2, "found again by their keys");
    assert_eq!(
        inner.calls_to("POST", "/flow_runs/").iter().filter(|it| it["flow_id"].is_string()).count(),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn end_with_their_parent() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, greeting| async move {
        let waiting = Flow::new("waiting", |ctx: Context, _: Greeting| async move {
            ctx.unless_cancelled(std::future::pending::<()>()).await?;
            Ok::<_, BoxError>(())
        });
        ctx.subflow(&waiting, greeting).await?;
        Ok(())
    });
    let cancel = async {
        bench.fake.until(|inner| inner.runs.values().filter(|run| run.states.len() == 1).count() == 2).await;
        while bench.fake.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        bench.cancel();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
    let inner = bench.fake.lock();
    assert!(inner.runs.values().all(|run| run.states.last().unwrap()["name"] == "Cancelled"));
}
