//! Cancellation and termination.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{Bench, greet};
use crate::engine::End;
use crate::entry::{Job, work};
use crate::error::BoxError;
use crate::{Context, Exit, Flow};

/// A flow that works until it is told to stop, and then takes its time to undo.
fn obedient(undone: &Arc<AtomicBool>) -> Flow<super::Greeting> {
    let undone = Arc::clone(undone);
    greet(move |ctx, _| {
        let undone = Arc::clone(&undone);
        async move {
            let work = ctx.task("work").run(|task| async move {
                task.unless_cancelled(std::future::pending::<()>()).await?;
                Ok::<_, BoxError>(())
            });
            let worked = work.await;
            // Started after the cancellation: it runs to its end.
            ctx.task("undo")
                .run(|_| async {
                    tokio::task::yield_now().await;
                    undone.store(true, Ordering::Relaxed);
                    Ok::<_, BoxError>(())
                })
                .await?;
            worked?;
            Ok(())
        }
    })
}

fn is_at_work(inner: &super::fake::Inner) -> bool {
    inner.task_states().contains(&"work: Running".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn by_an_event_lets_the_flow_undo_its_work() {
    let bench = Bench::new().await;
    let undone = Arc::new(AtomicBool::new(false));
    let cancel = async {
        bench.fake.until(is_at_work).await;
        while bench.fake.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        // One that is old news first: the record says that the run is running.
        bench.announce_cancelling();
        bench.cancel();
    };
    let (end, ()) = tokio::join!(bench.execute(obedient(&undone)), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
    assert!(undone.load(Ordering::Relaxed));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Cancelled"]);
    assert_eq!(inner.last_message(&bench.run), "Flow run was cancelled successfully.");
    assert_eq!(inner.calls_to("POST", "set_state").last().unwrap()["force"], true);
    assert_eq!(
        inner.task_states(),
        [
            "work: Pending",
            "work: Running",
            "work: Crashed",
            "undo: Pending",
            "undo: Running",
            "undo: Completed"
        ]
    );
    assert!(inner.events.iter().any(|event| event["event"] == "prefect.runner.cancelled-flow-run"));
    assert!(inner.lines().contains(&"20 Cancelled flow run 'versed-caracal'!".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn is_noticed_by_polling_when_sockets_are_refused() {
    let fake = super::Fake::start().await;
    fake.lock().refuse_sockets = true;
    let bench = Bench::on(fake, |options| options.poll_interval = Duration::from_millis(20));
    let undone = Arc::new(AtomicBool::new(false));
    let cancel = async {
        bench.fake.until(|inner| inner.states(&bench.run) == ["Running"]).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    };
    let (end, ()) = tokio::join!(bench.execute(obedient(&undone)), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
    assert!(undone.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_start_means_no_start() {
    let bench = Bench::new().await;
    bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    let end = bench.execute(greet(|_, _| async { panic!("must not run") })).await.unwrap();
    assert!(matches!(end, End::Cancelled));
    assert_eq!(bench.states(), ["Cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nobody_noticed_is_learnt_from_the_refused_end() {
    let bench = Bench::new().await;
    let (fake, run) = (bench.fake.clone(), bench.run.clone());
    let flow = greet(move |_, _| {
        fake.lock().set_state_type(&run, "CANCELLING");
        async { Ok(()) }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Cancelled));
    assert_eq!(bench.states(), ["Running", "Cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drops_a_flow_that_does_not_stop() {
    let bench = Bench::with(|options| options.cancel_grace = Duration::from_millis(10)).await;
    let flow = greet(|ctx, _| async move {
        let stubborn = ctx.task("submitted").submit(|_| std::future::pending::<Result<(), BoxError>>());
        ctx.task("work").run(|_| std::future::pending::<Result<(), BoxError>>()).await?;
        stubborn.await?;
        Ok(())
    });
    let cancel = async {
        bench.fake.until(is_at_work).await;
        while bench.fake.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        bench.cancel();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
    let states = bench.fake.lock().task_states();
    for task in ["work", "submitted"] {
        assert!(states.contains(&format!("{task}: Crashed")), "{states:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_somebody_else_stops_the_work_without_a_word() {
    let bench = Bench::with(|options| options.poll_interval = Duration::from_millis(20)).await;
    bench.fake.lock().refuse_sockets = true;
    let cancel = async {
        bench.fake.until(|inner| inner.states(&bench.run) == ["Running"]).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLED");
    };
    let flow = greet(|ctx, _| async move {
        ctx.cancelled().await;
        Ok(())
    });
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Left(_)));
    assert_eq!(bench.states(), ["Running"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_process_reports_a_crash() {
    let bench = Bench::new().await;
    let undone = Arc::new(AtomicBool::new(false));
    let terminate = async {
        bench.fake.until(is_at_work).await;
        bench.engine.terminate();
    };
    let (end, ()) = tokio::join!(bench.execute(obedient(&undone)), terminate);
    assert!(matches!(end.unwrap(), End::Crashed(_)));
    assert!(undone.load(Ordering::Relaxed));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Crashed"]);
    assert_eq!(inner.last_message(&bench.run), "Execution was aborted by a termination signal.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_terminated_for_a_cancellation_finishes_it() {
    let bench = Bench::new().await;
    let undone = Arc::new(AtomicBool::new(false));
    let terminate = async {
        bench.fake.until(is_at_work).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
        bench.engine.terminate();
    };
    let (end, ()) = tokio::join!(bench.execute(obedient(&undone)), terminate);
    assert!(matches!(end.unwrap(), End::Cancelled));
    assert_eq!(bench.states(), ["Running", "Cancelled"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ends_a_run_whose_code_blocks_its_thread() {
    let bench = Bench::with(|options| {
        options.cancel_grace = Duration::from_millis(10);
        options.last_words = Duration::from_millis(10);
    })
    .await;
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(std::sync::Mutex::new(blocked));
    let flow = greet(move |_, _| {
        let blocked = Arc::clone(&blocked);
        async move {
            assert!(blocked.lock().unwrap().recv().is_err(), "blocks until the test is over");
            Ok(())
        }
    });
    let cancel = async {
        bench.fake.until(|inner| inner.states(&bench.run) == ["Running"]).await;
        while bench.fake.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        bench.cancel();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    drop(release);
    assert!(matches!(end.unwrap(), End::Cancelled));
    assert_eq!(bench.states(), ["Running", "Cancelled"]);
}

/// A subflow whose task does not stop.
fn stubborn() -> Flow<super::Greeting> {
    Flow::new("stubborn", |ctx: Context, _: super::Greeting| async move {
        ctx.task("work").run(|_| std::future::pending::<Result<(), BoxError>>()).await?;
        Ok::<_, BoxError>(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subflow_that_does_not_stop_is_reported_before_its_flow() {
    let bench = Bench::with(|options| options.terminate_grace = Duration::from_millis(10)).await;
    let flow = greet(|ctx, greeting| async move {
        ctx.subflow(&stubborn(), greeting).await?;
        Ok(())
    });
    let terminate = async {
        bench.fake.until(is_at_work).await;
        bench.engine.terminate();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), terminate);
    assert!(matches!(end.unwrap(), End::Crashed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.runs.len(), 2);
    assert!(inner.runs.values().all(|run| run.states.last().unwrap()["name"] == "Crashed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_subflow_is_cancelled() {
    let bench = Bench::with(|options| options.cancel_grace = Duration::from_millis(10)).await;
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, greeting| {
        let fake = fake.clone();
        async move {
            tokio::select! {
                ended = ctx.subflow(&stubborn(), greeting).into_future() => drop(ended?),
                () = fake.until(is_at_work) => {}
            }
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    let subflow = inner.runs.iter().find(|(id, _)| **id != bench.run).unwrap().0;
    assert_eq!(inner.states(subflow), ["Running", "Cancelled"]);
    assert_eq!(inner.states(&bench.run), ["Running", "Completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_asked_twice_waits_for_no_server() {
    let bench = Bench::with(|options| options.last_words = Duration::from_millis(10)).await;
    bench.fake.lock().held.push(format!("/flow_runs/{}/set_state", bench.run));
    let program = crate::Program::new("test", "1.0").flow(greet(|_, _| async { Ok(()) }));
    let job = Job::Execute(bench.run.parse().unwrap());
    let terminate = async {
        bench.fake.until(|inner| !inner.calls_to("POST", "set_state").is_empty()).await;
        bench.engine.terminate();
        bench.engine.terminate();
    };
    let (exit, ()) = tokio::join!(work(&bench.engine, program, job), terminate);
    assert_eq!(exit, Exit::Failure, "so that the worker looks after the run");
    bench.engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_start_is_learnt_from_the_refused_end() {
    let bench = Bench::new().await;
    let state = json!({"id": uuid::Uuid::new_v4(), "type": "CANCELLING", "name": "Cancelling",
        "timestamp": "2026-11-22T04:47:05.571364Z", "state_details": {}});
    {
        let mut inner = bench.fake.lock();
        inner.runs.get_mut(&bench.run).unwrap().record["parameters"] = json!({"count": "many"});
        inner
            .answers
            .push_back(json!({"status": "REJECT", "state": state, "details": {"reason": "cancelling"}}));
    }
    bench.execute(greet(|_, _| async { panic!("must not run") })).await.unwrap();
    assert_eq!(bench.states(), ["Cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn is_noticed_while_the_run_waits_to_start() {
    let bench = Bench::with(|options| options.poll_interval = Duration::from_millis(20)).await;
    {
        let mut inner = bench.fake.lock();
        inner.refuse_sockets = true;
        inner.answers.push_back(
            json!({"status": "WAIT", "state": null, "details": {"delay_seconds": 3600, "reason": "later"}}),
        );
    }
    let cancel = async {
        bench.fake.until(|inner| inner.calls_to("POST", "set_state").len() == 1).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    };
    let (end, ()) = tokio::join!(bench.execute(greet(|_, _| async { panic!("must not run") })), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
}
