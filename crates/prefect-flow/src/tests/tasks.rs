//! What is reported of task runs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Bench, greet};
use crate::engine::End;
use crate::error::{BoxError, TaskCause};

#[tokio::test(flavor = "multi_thread")]
async fn retries_wait_and_end() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let count = AtomicU32::new(0);
        let done = ctx
            .task("flaky")
            .retries(3, [Duration::from_millis(1), Duration::ZERO])
            .run(|_| async {
                let attempt = count.fetch_add(1, Ordering::Relaxed);
                if attempt < 2 { Err(format!("attempt {attempt}")) } else { Ok(attempt) }
            })
            .await?;
        assert_eq!(*done, 2);
        assert_eq!(format!("{done:>3}"), "  2");
        let hopeless = ctx
            .task("hopeless")
            .retries(3, Duration::ZERO)
            .retry_if(|error| error.to_string() != "fatal")
            .run(|_| async { Err::<(), _>("fatal") })
            .await
            .unwrap_err();
        assert!(matches!(hopeless.cause(), TaskCause::Failed(_)));
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    assert_eq!(
        inner.task_states(),
        [
            "flaky: Pending",
            "flaky: Running",
            "flaky: AwaitingRetry",
            "flaky: Retrying",
            "flaky: Retrying",
            "flaky: Completed",
            "hopeless: Pending",
            "hopeless: Running",
            "hopeless: Failed",
        ]
    );
    let lines = inner.lines();
    let has = |line: &str| assert!(lines.iter().any(|it| it == line), "{line} in {lines:#?}");
    has("20 Task run failed with exception: attempt 0 - Retry 1/3 will start 0.001 second(s) from now");
    has("20 Task run failed with exception: attempt 1 - Retry 2/3 will start immediately");
    has("40 Finished in state Failed('Task run encountered an exception fatal')");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_failed_task_never_starts() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let failed = ctx.task("first").run(|_| async { Err::<(), _>("no") }).await;
        let second = ctx.task("second").wait_for(&failed).run(|_| async {
            panic!("must not run");
            #[expect(unreachable_code, reason = "gives the closure its type")]
            Ok::<(), BoxError>(())
        });
        let second = second.await;
        assert!(matches!(second.unwrap_err().cause(), TaskCause::NotReady { .. }));
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(
        bench.fake.lock().task_states(),
        ["first: Pending", "first: Running", "first: Failed", "second: Pending", "second: NotReady"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_task_is_an_error_of_the_flow() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        ctx.task("bad")
            .retries(2, Duration::ZERO)
            .run(|task| async move {
                let remainder = 1 % (task.attempt() - 1);
                Ok::<_, BoxError>(remainder)
            })
            .await?;
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.task_states(), ["bad: Pending", "bad: Running", "bad: Crashed"]);
    assert!(
        inner
            .last_message(&bench.run)
            .ends_with("the task panicked: attempt to calculate the remainder with a divisor of zero")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_takes_too_long_times_out() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let slow = ctx
            .task("slow")
            .timeout(Duration::from_millis(10))
            .run(|_| std::future::pending::<Result<(), BoxError>>())
            .await;
        assert!(matches!(slow.unwrap_err().cause(), TaskCause::TimedOut(_)));
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    assert_eq!(bench.fake.lock().task_states(), ["slow: Pending", "slow: Running", "slow: TimedOut"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_task_crashed() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let (started, running) = tokio::sync::oneshot::channel::<()>();
        let started = std::sync::Mutex::new(Some(started));
        let task = ctx.task("dropped").run(|_| {
            let started = started.lock().unwrap().take();
            async move {
                drop(started);
                std::future::pending::<Result<(), BoxError>>().await
            }
        });
        tokio::select! {
            _ = task => {}
            _ = running => {}
        }
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.fake.lock().task_states(), ["dropped: Pending", "dropped: Running", "dropped: Crashed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn submitted_tasks_run_beside_the_flow_and_end_before_it() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(2));
        let meet = |name: &str| {
            let barrier = std::sync::Arc::clone(&barrier);
            ctx.task(name).submit(move |_| {
                let barrier = std::sync::Arc::clone(&barrier);
                async move {
                    // Both or none: passes only if they are at work at once.
                    barrier.wait().await;
                    Ok::<_, BoxError>(7)
                }
            })
        };
        let (left, right) = (meet("left"), meet("right"));
        let sum = ctx.task("sum").wait_for_all([&left, &right]).submit(|_| async { Ok::<_, BoxError>(()) });
        assert_eq!(*left.await? + *right.await?, 14);
        // Not awaited: the engine does.
        drop(sum);
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.task_states().last().unwrap(), "sum: Completed");
    let sum = inner.events.iter().rfind(|it| it["event"] == "prefect.task-run.Completed").unwrap();
    let waits = &sum["payload"]["task_run"]["task_inputs"]["wait_for"];
    assert_eq!(waits.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_task_names_its_parent() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        ctx.task("outer")
            .run(|outer| async move {
                outer.task("inner").run(|_| async { Ok::<_, BoxError>(()) }).await?;
                Ok::<_, BoxError>(())
            })
            .await?;
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    let id =
        |event: &serde_json::Value| event["resource"]["prefect.resource.id"].as_str().unwrap().to_owned();
    let tasks: Vec<_> = inner.events.iter().filter(|it| it["event"] == "prefect.task-run.Pending").collect();
    let parent = &tasks[1]["payload"]["task_run"]["task_inputs"]["__parents__"][0];
    assert_eq!(parent["input_type"], "task_run");
    assert!(id(tasks[0]).ends_with(parent["id"].as_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn task_states_arrive_over_rest_when_sockets_are_refused() {
    let bench = Bench::new().await;
    bench.fake.lock().refuse_sockets = true;
    let flow = greet(|ctx, _| async move {
        ctx.task("step").run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    assert_eq!(bench.fake.lock().task_states(), ["step: Pending", "step: Running", "step: Completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_tasks_are_runs_of_their_own_in_the_order_of_their_items() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let attempts = std::sync::Arc::new(AtomicU32::new(0));
        let counted = std::sync::Arc::clone(&attempts);
        let squares = ctx.task("square").retries(1, Duration::ZERO).map(1..=20_u32, move |_, number| {
            // The first attempt at one of them fails; its item is there again for the second.
            let fails = number == 7 && counted.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if fails { Err("not yet") } else { Ok(number * number) } }
        });
        let mut sum = 0;
        let mut last = 0;
        for square in squares {
            let square = square.await?;
            assert!(*square > last);
            last = *square;
            sum += last;
        }
        assert_eq!((sum, attempts.load(Ordering::Relaxed)), (2870, 2));
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    let states = inner.task_states();
    assert_eq!(states.iter().filter(|state| *state == "square: Completed").count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_blocks_has_a_thread_of_its_own() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let here = std::thread::current().id();
        let done = ctx.task("blocking").run_blocking(move |task| {
            task.info("working");
            assert_ne!(std::thread::current().id(), here);
            Ok::<_, BoxError>(7)
        });
        assert_eq!(*done.await?, 7);
        let bad = ctx.task("bad").run_blocking(|task| {
            let remainder = 1 % (task.attempt() - 1);
            Ok::<_, BoxError>(remainder)
        });
        assert!(matches!(bad.await.unwrap_err().cause(), TaskCause::Panicked(_)));
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_small_while_it_waits() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let run = ctx.task("one of thousands").run(|_| async { Ok::<_, BoxError>(()) });
        // What calls the server in rare cases is as large as all the rest together, and belongs on the heap.
        assert!(std::mem::size_of_val(&run) < 4096, "{} bytes", std::mem::size_of_val(&run));
        run.await?;
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
}
