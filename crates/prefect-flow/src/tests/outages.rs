//! Answers that are lost, and a server that is away: what is told is told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Bench, Greeting, greet};
use crate::engine::End;
use crate::error::BoxError;
use crate::{Context, Flow};

fn lose(bench: &Bench, part: &str, count: u32) {
    bench.fake.lock().lost.push((part.to_owned(), count));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_stored_once_though_the_answer_is_lost() {
    let bench = Bench::new().await;
    lose(&bench, "/logs/", 2);
    let flow = greet(|ctx, _| async move {
        ctx.info("one");
        ctx.info("two");
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    let expected = [
        "20 Beginning flow run 'versed-caracal' for flow 'greet'",
        "20 one",
        "20 two",
        "20 Finished in state Completed()",
    ];
    assert_eq!(inner.lines(), expected);
    assert!(!inner.calls_to("POST", "/logs/filter").is_empty(), "looked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_did_not_arrive_are_sent_again() {
    let bench = Bench::new().await;
    bench.fake.lock().failures.push(("/logs/".to_owned(), 1, 502));
    bench.execute(greet(|_, _| async { Ok(()) })).await.unwrap();
    assert_eq!(bench.fake.lock().lines().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_made_once_though_the_answer_is_lost() {
    let bench = Bench::new().await;
    lose(&bench, "/artifacts/", 1);
    let flow = greet(|ctx, _| async move {
        ctx.markdown("report", "first", None).await?;
        ctx.markdown("report", "second", None).await?;
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    let texts: Vec<&str> = inner.artifacts.iter().map(|made| made["data"].as_str().unwrap()).collect();
    assert_eq!(texts, ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_tried_again_though_the_answer_to_its_failure_is_lost() {
    let bench = Bench::new().await;
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&attempts);
    let fake = bench.fake.clone();
    let flow = greet(move |_, _| {
        let attempt = counted.fetch_add(1, Ordering::Relaxed) + 1;
        if attempt == 1 {
            fake.lock().lost.push(("/set_state".to_owned(), 1));
        }
        async move { if attempt == 1 { Err("first".into()) } else { Ok(()) } }
    })
    .retries(1, Duration::ZERO);
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.states(), ["Running", "AwaitingRetry", "Running", "Completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_without_retries_is_told_though_the_answer_is_lost() {
    let bench = Bench::new().await;
    let fake = bench.fake.clone();
    let flow = greet(move |_, _| {
        fake.lock().failures.push(("/set_state".to_owned(), 1, 502));
        async { Err("broken".into()) }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    assert_eq!(bench.states(), ["Running", "Failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subflow_has_one_run_though_the_answer_to_its_creation_is_lost() {
    let bench = Bench::new().await;
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, greeting| {
        fake.lock().lost.push(("/flow_runs/".to_owned(), 1));
        async move {
            let child = Flow::new("child", |_: Context, _: Greeting| async { Ok::<_, BoxError>(()) });
            ctx.subflow(&child, greeting).await?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.fake.lock().runs.len(), 2, "the flow's and one of the subflow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let bench = Bench::new().await;
    bench.fake.lock().failures.push((format!("/flow_runs/{}", bench.run), 1, 503));
    assert!(matches!(bench.execute(greet(|_, _| async { Ok(()) })).await.unwrap(), End::Completed(_)));
}
