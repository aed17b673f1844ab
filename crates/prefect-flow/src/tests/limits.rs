//! Slots: of tags, and of the deployment.

use serde_json::json;

use super::{Bench, greet};
use crate::engine::End;
use crate::error::BoxError;

#[tokio::test(flavor = "multi_thread")]
async fn a_tags_slot_is_taken_before_running_and_given_back() {
    let bench = Bench::new().await;
    bench.fake.lock().limits.insert("tag:db".to_owned(), 0);
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            let task = ctx.task("load").tags(["db", "other"]).run(|_| async {
                assert_eq!(fake.lock().limits["tag:db"], 0);
                Ok::<_, BoxError>(())
            });
            let free = async {
                fake.until(|inner| inner.calls_to("POST", "increment-with-lease").len() >= 2).await;
                assert_eq!(fake.lock().task_states(), ["load: Pending"]);
                fake.lock().limits.insert("tag:db".to_owned(), 1);
            };
            let (done, ()) = tokio::join!(task, free);
            done?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.limits["tag:db"], 1);
    let asked = &inner.calls_to("POST", "increment-with-lease")[0];
    assert_eq!(asked["names"], json!(["tag:db", "tag:other"]));
    assert_eq!((&asked["lease_duration"], &asked["holder"]["type"]), (&json!(60), &json!("task_run")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_given_back_after_a_panic_and_when_the_task_is_dropped() {
    let bench = Bench::new().await;
    bench.fake.lock().limits.insert("tag:db".to_owned(), 2);
    let flow = greet(|ctx, _| async move {
        let (started, running) = tokio::sync::oneshot::channel::<()>();
        let started = std::sync::Mutex::new(Some(started));
        let pending = ctx.task("dropped").tag("db").run(|_| {
            let started = started.lock().unwrap().take();
            async move {
                drop(started);
                std::future::pending::<Result<(), BoxError>>().await
            }
        });
        tokio::select! { _ = pending => {}, _ = running => {} }
        let panicked = ctx.task("bad").tag("db").run(|task| async move {
            let remainder = 1 % (task.attempt() - 1);
            Ok::<_, BoxError>(remainder)
        });
        assert!(panicked.await.is_err());
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    assert_eq!(inner.limits["tag:db"], 2);
    assert!(inner.leases.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_without_limits_are_asked_about_once_and_warned_of() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        for _ in 0..3 {
            ctx.task("load").tag("nothing").run(|_| async { Ok::<_, BoxError>(()) }).await?;
        }
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    assert_eq!(inner.calls_to("POST", "increment-with-lease").len(), 1);
    assert_eq!(inner.lines().iter().filter(|line| line.starts_with("30 No concurrency limit")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_can_never_be_met_fails_the_task() {
    let bench = Bench::new().await;
    bench.fake.lock().failures.push(("increment-with-lease".to_owned(), 1, 422));
    let flow = greet(|ctx, _| async move {
        ctx.task("load").tag("db").run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    assert_eq!(bench.fake.lock().task_states(), ["load: Pending", "load: Failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_deployment_slot_is_lost_is_ended() {
    let bench = Bench::new().await;
    {
        let mut inner = bench.fake.lock();
        inner.answers.push_back(json!({"status": "ACCEPT", "details": {},
            "state_details": {"deployment_concurrency_lease_id": "65a2b08d-7591-43e3-895b-896f664a2492"}}));
        inner.failures.push(("/renew".to_owned(), 1, 410));
    }
    let flow = greet(|ctx, _| async move {
        ctx.cancelled().await;
        Err("stopped".into())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Crashed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Crashed"]);
    assert!(inner.last_message(&bench.run).contains("concurrency slot"));
}
