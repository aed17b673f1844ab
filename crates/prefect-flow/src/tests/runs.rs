//! How flow runs end, and what is proposed for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{Bench, greet};
use crate::engine::{End, Error};
use crate::error::BoxError;
use crate::{Context, Event, Resource};

#[derive(Debug, thiserror::Error)]
#[error("upload part 3")]
struct Upload(#[source] std::io::Error);

#[tokio::test(flavor = "multi_thread")]
async fn an_error_fails_the_run_with_its_causes() {
    let bench = Bench::new().await;
    let end = bench
        .execute(greet(|_, _| async { Err(Upload(std::io::Error::other("connection reset")).into()) }))
        .await
        .unwrap();
    assert!(matches!(end, End::Failed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Failed"]);
    assert_eq!(
        inner.last_message(&bench.run),
        "Flow run encountered an exception: upload part 3: connection reset"
    );
    assert_eq!(
        inner.lines(),
        [
            "20 Beginning flow run 'versed-caracal' for flow 'greet'",
            "40 Encountered exception during execution: upload part 3: connection reset",
            "20 Finished in state Failed('Flow run encountered an exception: upload part 3: connection reset')",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_crashes_the_run() {
    let bench = Bench::new().await;
    let end = bench.execute(greet(|_, _| async { panic!("index out of bounds") })).await.unwrap();
    assert!(matches!(end, End::Crashed(_)));
    assert_eq!(bench.states(), ["Running", "Crashed"]);
    assert_eq!(bench.fake.lock().last_message(&bench.run), "Flow run panicked: index out of bounds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_takes_too_long_times_out() {
    let bench = Bench::with(|options| options.terminate_grace = Duration::ZERO).await;
    let flow = greet(|_, _| std::future::pending()).timeout(Duration::from_millis(20));
    let end = bench.execute(flow).await.unwrap();
    assert!(matches!(end, End::Failed(_)));
    assert_eq!(bench.states(), ["Running", "TimedOut"]);
    assert_eq!(bench.fake.lock().last_message(&bench.run), "Flow run exceeded timeout of 0.02 second(s)");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameters_fail_the_run_before_anything_happens() {
    let bench = Bench::new().await;
    let run = bench.run.clone();
    bench.fake.lock().runs.get_mut(&run).unwrap().record["parameters"] = json!({"count": "many"});
    let ran = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ran);
    let end = bench
        .execute(greet(move |_, _| {
            seen.store(true, Ordering::Relaxed);
            async { Ok(()) }
        }))
        .await
        .unwrap();
    assert!(matches!(end, End::Failed(_)));
    assert!(!ran.load(Ordering::Relaxed));
    assert_eq!(bench.states(), ["Failed"]);
    assert_eq!(
        bench.fake.lock().last_message(&bench.run),
        "Validation of flow parameters failed with error: parameter `count`: invalid type: string \"many\", \
         expected u32"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_is_not_here_crashes_the_run() {
    let bench = Bench::new().await;
    let other = crate::Flow::new("other", |_, _: super::Greeting| async { Ok::<_, BoxError>(()) });
    let error = bench.execute(other).await.err().unwrap();
    assert!(matches!(error, Error::UnknownFlow { .. }));
    assert_eq!(bench.states(), ["Crashed"]);
    assert_eq!(
        bench.fake.lock().last_message(&bench.run),
        "flow 'greet' is not in this program; it has 'other'"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_does_not_exist_is_an_error() {
    let mut bench = Bench::new().await;
    bench.run = uuid::Uuid::nil().to_string();
    let error = bench.execute(greet(|_, _| async { Ok(()) })).await.err().unwrap();
    assert!(matches!(error, Error::Read { source, .. } if source.is_not_found()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_has_a_failed_run_tried_again_here() {
    let bench = Bench::new().await;
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&attempts);
    let flow = greet(move |ctx, _| {
        let attempt = counted.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            assert_eq!(ctx.attempt(), attempt);
            let step = ctx.task("step").run(|_| async { Ok::<_, BoxError>(()) }).await?;
            drop(step);
            if attempt == 1 { Err("first".into()) } else { Ok(()) }
        }
    })
    .retries(1, Duration::ZERO);
    {
        let mut inner = bench.fake.lock();
        // The first RUNNING waits, as if the retry were in the future.
        inner.answers.push_back(
            json!({"status": "WAIT", "state": null, "details": {"delay_seconds": 0.1, "reason": "later"}}),
        );
    }
    let end = bench.execute(flow).await.unwrap();
    assert!(matches!(end, End::Completed(_)));
    assert_eq!(bench.states(), ["Running", "AwaitingRetry", "Running", "Completed"]);
    let inner = bench.fake.lock();
    let tasks: Vec<_> = inner
        .events
        .iter()
        .filter(|event| event["event"] == "prefect.task-run.Running")
        .map(|event| &event["payload"]["task_run"])
        .collect();
    assert_eq!((&tasks[0]["flow_run_run_count"], &tasks[1]["flow_run_run_count"]), (&json!(1), &json!(2)));
    assert_ne!(tasks[0]["dynamic_key"], tasks[1]["dynamic_key"]);
    // Every proposal has a transition id of its own.
    let mut ids: Vec<String> = inner
        .calls_to("POST", "set_state")
        .iter()
        .map(|body| body["state"]["state_details"]["transition_id"].to_string())
        .collect();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
    assert!(inner.lines().iter().any(|line| line.contains("will attempt to run again...")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_a_retry_leaves_the_run_retriable_from_the_ui() {
    let bench = Bench::new().await;
    let attempts = AtomicU32::new(0);
    let flow = greet(move |_, _| {
        assert_eq!(attempts.fetch_add(1, Ordering::Relaxed), 0, "the second attempt panics");
        async { Err("first".into()) }
    });
    let end = bench.execute(flow.retries(1, Duration::ZERO)).await.unwrap();
    assert!(matches!(end, End::Crashed(_)));
    let inner = bench.fake.lock();
    let policy = &inner.runs[&bench.run].record["empirical_policy"];
    assert_eq!((&policy["retry_type"], &policy["pause_keys"]), (&json!(null), &json!(["1"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_delays_the_final_state_only() {
    let bench = Bench::new().await;
    let fake = bench.fake.clone();
    let flow = greet(move |_, _| {
        fake.lock().failures.push(("set_state".to_owned(), 2, 500));
        async { Ok(()) }
    });
    let end = bench.execute(flow).await.unwrap();
    assert!(matches!(end, End::Completed(_)));
    let proposals = bench.fake.lock().calls_to("POST", "set_state");
    assert_eq!(proposals.len(), 4, "Running, and Completed three times");
    // The same proposal, so that the server knows it again if only its answer was lost.
    assert_eq!(proposals[1], proposals[3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_no_refusal() {
    let bench = Bench::new().await;
    let fake = bench.fake.clone();
    let flow = greet(move |_, _| {
        let fake = fake.clone();
        async move {
            // The next proposal arrives, its answer does not; the one after is told that it is known.
            fake.lock().failures.push(("set_state".to_owned(), 1, 500));
            Ok(())
        }
    });
    let run = bench.run.clone();
    let server = bench.fake.clone();
    let answering = async move {
        server.until(|inner| inner.calls_to("POST", "set_state").len() == 2).await;
        let mut inner = server.lock();
        let mut state = inner.calls_to("POST", "set_state")[1]["state"].clone();
        state["id"] = json!(uuid::Uuid::new_v4());
        state["timestamp"] = json!(jiff::Timestamp::now());
        inner.answers.push_back(json!({"status": "REJECT", "state": state,
            "details": {"reason": "This run has already made this state transition."}}));
        drop(run);
    };
    let (end, ()) = tokio::join!(bench.execute(flow), answering);
    assert!(matches!(end.unwrap(), End::Completed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_left_to_others_when_the_server_says_so() {
    let state = |kind: &str, name: &str| {
        json!({"id": uuid::Uuid::new_v4(), "type": kind, "name": name,
            "timestamp": "2026-11-22T04:47:05.571364Z", "state_details": {}})
    };
    let answers = [
        json!({"status": "ABORT", "state": state("COMPLETED", "Completed"), "details": {"reason": "over"}}),
        json!({"status": "REJECT", "state": state("PAUSED", "Paused"), "details": {"reason": "paused"}}),
        json!({"status": "REJECT", "state": state("CANCELLED", "Cancelled"), "details": {"reason": "no slot"}}),
    ];
    for answer in answers {
        let bench = Bench::new().await;
        bench.fake.lock().answers.push_back(answer);
        let end = bench.execute(greet(|_, _| async { panic!("must not run") })).await.unwrap();
        assert!(matches!(end, End::Left(_)));
        assert_eq!(bench.fake.lock().calls_to("POST", "set_state").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_server_holds_pending_is_proposed_again() {
    let bench = Bench::new().await;
    bench.fake.lock().answers.push_back(json!({"status": "REJECT", "details": {"reason": "slow"},
        "state": {"id": uuid::Uuid::new_v4(), "type": "PENDING", "name": "Pending",
            "timestamp": "2026-11-22T04:47:05.571364Z", "state_details": {}}}));
    let end = bench.execute(greet(|_, _| async { Ok(()) })).await.unwrap();
    assert!(matches!(end, End::Completed(_)));
}

/// The fields of a block.
#[derive(Debug, serde::Deserialize)]
struct Mail {
    #[expect(dead_code, reason = "never read: the block does not fit")]
    port: u16,
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_variables_are_read_and_their_faults_named() {
    let bench = Bench::new().await;
    {
        let mut inner = bench.fake.lock();
        inner.variables.insert("limits".to_owned(), json!({"parts": "three"}));
        inner.blocks.insert("secret/github".to_owned(), json!({"value": "hush"}));
        inner.blocks.insert("mail/ours".to_owned(), json!({"host": "post", "port": "hush"}));
        inner.blocks.insert("secret/hidden".to_owned(), json!({"value": "********"}));
    }
    let flow = greet(|ctx, _| async move {
        use secrecy::ExposeSecret as _;
        let secret = ctx.secret("github").await?;
        assert_eq!(secret.expose_secret(), "hush");
        assert_eq!(ctx.variable::<u32>("none").await?, None);
        let wrong = ctx.variable::<std::collections::BTreeMap<String, u32>>("limits").await.unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "read variable 'limits': at `parts`: invalid type: string \"three\", expected u32"
        );
        let missing = ctx.secret("none").await.unwrap_err().to_string();
        assert_eq!(missing, "read secret block 'none': the Prefect server has none of that name");
        assert!(ctx.secret("hidden").await.unwrap_err().to_string().contains("hides the secret"));
        ctx.variable::<serde_json::Value>("limits").await?;
        let fields: std::collections::BTreeMap<String, String> = ctx.block("mail/ours").await?;
        assert_eq!(fields["host"], "post");
        let wrong = ctx.block::<Mail>("mail/ours").await.unwrap_err().to_string();
        assert_eq!(wrong, "read block 'mail/ours': at `port`: of another form", "without the value");
        let nameless = ctx.block::<Mail>("ours").await.unwrap_err().to_string();
        assert_eq!(nameless, "read block 'ours': at `.`: it is not TYPE/NAME, as in `s3-bucket/results`");
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.fake.lock().calls_to("GET", "/variables/name/limits").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_flow_relate_to_its_run() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let tell = |task: Context| async move {
            task.emit_event(Event::now("dataset.archived", Resource::new("dataset.7")).with("size", 3)).await
        };
        ctx.task("tell").run(tell).await?;
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    let event = inner.events.iter().find(|event| event["event"] == "dataset.archived").unwrap();
    assert_eq!(event["payload"], json!({"size": 3}));
    let roles: Vec<_> =
        event["related"].as_array().unwrap().iter().map(|it| it["prefect.resource.role"].clone()).collect();
    assert_eq!(roles, ["flow-run", "flow", "task-run"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_on_its_way_at_the_end_is_not_sent_twice() {
    let bench = Bench::with(|options| options.logging.interval = Duration::from_millis(1)).await;
    bench.fake.lock().held.push("/logs/".to_owned());
    let fake = bench.fake.clone();
    let flow = greet(move |_, _| {
        let fake = fake.clone();
        async move {
            fake.until(|inner| !inner.lines().is_empty()).await;
            Ok(())
        }
    });
    let release = async {
        bench.fake.until(|inner| inner.states(&bench.run).contains(&"Completed".to_owned())).await;
        // Whatever the closing engine does first, it has every chance to do it.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        bench.fake.release();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), release);
    end.unwrap();
    let mut lines = bench.fake.lock().lines();
    lines.sort();
    let all = lines.len();
    lines.dedup();
    assert_eq!((all, lines.len()), (2, 2), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_progress_ends_with_its_last_value() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        assert!(ctx.progress("Bad Key", None).is_err());
        let progress = ctx.progress("upload", Some("the upload"))?;
        for done in 0..=1000 {
            progress.set_of(done, 1000);
        }
        ctx.link("result", "http://h/x", "the result", None).await?;
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    assert_eq!(inner.calls_to("PATCH", "/artifacts/").last().unwrap(), &json!({"data": 100.0}));
    assert!(inner.calls_to("PATCH", "/artifacts/").len() <= 2);
    let created = inner.calls_to("POST", "/artifacts/");
    assert!(created.iter().any(|it| it["data"] == "[the result](http://h/x)" && it["type"] == "markdown"));
}
