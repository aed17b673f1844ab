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

const DEPLOYMENT: &str = "b04f019f-5234-4e2b-8ddd-49c06f0b2d44";
const LEASE: &str = "65a2b08d-7591-43e3-895b-896f664a2492";

/// The run has a slot of its deployment's only one, of which a restarted server has forgotten the lease.
fn forget_deployment_lease(bench: &Bench) {
    let mut inner = bench.fake.lock();
    inner.answers.push_back(json!({"status": "ACCEPT", "details": {},
        "state_details": {"deployment_concurrency_lease_id": LEASE}}));
    inner.forgotten.push(LEASE.to_owned());
    inner.runs.get_mut(&bench.run).unwrap().record["deployment_id"] = json!(DEPLOYMENT);
    let flow_id = inner.flow_id("greet");
    let limit = json!({"id": uuid::Uuid::new_v4(), "name": format!("deployment:{DEPLOYMENT}"), "limit": 1});
    let deployment =
        json!({"id": DEPLOYMENT, "name": "daily", "flow_id": flow_id, "global_concurrency_limit": limit});
    inner.deployments.insert(DEPLOYMENT.to_owned(), deployment);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_deployment_lease_is_forgotten_goes_on() {
    let bench = Bench::new().await;
    forget_deployment_lease(&bench);
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            fake.until(|inner| !inner.calls_to("POST", "/flow_runs/filter").is_empty()).await;
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert!(!ctx.is_cancelled());
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Completed"]);
    assert!(
        inner
            .lines()
            .iter()
            .any(|line| line.starts_with("30 The lease on the deployment's concurrency slot"))
    );
    assert_eq!(inner.calls_to("POST", "/renew").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_deployment_slot_was_given_away_is_ended() {
    let bench = Bench::new().await;
    forget_deployment_lease(&bench);
    bench.fake.lock().add_run("greet", &json!({}), Some(DEPLOYMENT));
    let flow = greet(|ctx, _| async move {
        ctx.cancelled().await;
        Err("stopped".into())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Crashed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Crashed"]);
    assert!(inner.last_message(&bench.run).contains("concurrency slot"));
}

/// A lease lives long enough for a busy machine, and is renewed often.
async fn restless() -> Bench {
    Bench::with(|options| options.renew_after = 1e-4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_slot_is_taken_again_where_there_is_another() {
    let bench = restless().await;
    bench.fake.lock().limits.insert("tag:db".to_owned(), 2);
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            ctx.task("load")
                .tag("db")
                .run(|_| async {
                    fake.lock().forget_leases();
                    fake.until(|inner| !inner.calls_to("POST", "/decrement").is_empty()).await;
                    let inner = fake.lock();
                    assert_eq!(
                        (inner.limits["tag:db"], inner.leases.len()),
                        (1, 1),
                        "one slot, with a lease"
                    );
                    Ok::<_, BoxError>(())
                })
                .await?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!((inner.limits["tag:db"], inner.leases.len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_slot_of_the_only_ones_is_given_back_by_name() {
    let bench = restless().await;
    bench.fake.lock().limits.insert("tag:db".to_owned(), 1);
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            ctx.task("load")
                .tags(["db", "unlimited"])
                .run(|_| async {
                    fake.lock().forget_leases();
                    fake.until(|inner| inner.calls_to("POST", "increment-with-lease").len() > 2).await;
                    Ok::<_, BoxError>(())
                })
                .await?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!((inner.limits["tag:db"], inner.leases.len()), (1, 0));
    assert_eq!(
        inner.calls_to("POST", "/decrement").last().unwrap(),
        &json!({"names": ["tag:db"], "slots": 1})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_forgotten_before_any_renewal_is_given_back_too() {
    let bench = Bench::new().await;
    bench.fake.lock().limits.insert("tag:db".to_owned(), 1);
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            let forget = |_| async {
                fake.lock().forget_leases();
                Ok::<_, BoxError>(())
            };
            ctx.task("load").tag("db").run(forget).await?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.fake.lock().limits["tag:db"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_global_limits_are_held_as_long_as_the_flow_wants() {
    let bench = Bench::new().await;
    {
        let mut inner = bench.fake.lock();
        inner.limits.insert("tape".to_owned(), 3);
        inner.limits.insert("api".to_owned(), 5);
    }
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            let slots = ctx.concurrency(["tape"], 2).await?;
            assert_eq!(fake.lock().limits["tape"], 1);
            let more =
                tokio::time::timeout(std::time::Duration::from_millis(50), ctx.concurrency(["tape"], 2))
                    .await;
            assert!(more.is_err(), "there is one left");
            drop(slots);
            fake.until(|inner| inner.limits["tape"] == 3).await;
            ctx.rate_limit(["api"], 4).await?;
            assert_eq!(fake.lock().limits["api"], 1, "comes back by itself");
            drop(ctx.concurrency(["nothing"], 1).await?);
            ctx.rate_limit(["nothing"], 1).await?;
            fake.lock().failures.push(("increment".to_owned(), 1, 422));
            let error = ctx.concurrency(["tape"], 9).await.unwrap_err();
            assert!(
                error.to_string().starts_with("take 9 slot(s) of the concurrency limits [\"tape\"]"),
                "{error}"
            );
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.limits["tape"], 3);
    let asked = &inner.calls_to("POST", "increment-with-lease")[0];
    assert_eq!((&asked["slots"], &asked["lease_duration"]), (&json!(2), &json!(300)));
    assert_eq!(asked["holder"], json!({"type": "flow_run", "id": bench.run}));
    let missing = "30 Concurrency limits ['nothing'] do not exist - skipping acquisition.";
    assert_eq!(inner.lines().iter().filter(|line| *line == missing).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_slots_ends_with_the_run() {
    let bench = Bench::with(|options| options.poll_interval = std::time::Duration::from_millis(20)).await;
    {
        let mut inner = bench.fake.lock();
        inner.refuse_sockets = true;
        inner.limits.insert("tape".to_owned(), 0);
    }
    let flow = greet(|ctx, _| async move {
        drop(ctx.concurrency(["tape"], 1).await?);
        Ok(())
    });
    let cancel = async {
        bench.fake.until(|inner| !inner.calls_to("POST", "increment-with-lease").is_empty()).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
    assert!(bench.fake.lock().leases.is_empty());
}
