//! Runs that are paused, suspended, and handed back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{Bench, greet};
use crate::engine::End;
use crate::error::BoxError;

const DEPLOYMENT: &str = "b04f019f-5234-4e2b-8ddd-49c06f0b2d44";

/// What a person decides.
#[derive(Debug, Deserialize, JsonSchema)]
struct Approval {
    /// Whether to go on.
    approved: bool,
    #[serde(default)]
    remark: String,
}

/// Pauses are looked at often, and none has been before.
async fn bench() -> Bench {
    let bench = Bench::with(|options| options.poll_interval = Duration::from_millis(10)).await;
    let run = bench.run.clone();
    bench.fake.lock().runs.get_mut(&run).unwrap().record["empirical_policy"]["pause_keys"] = json!([]);
    bench
}

fn last_state_is(bench: &Bench, name: &str) -> impl Fn(&super::fake::Inner) -> bool + use<> {
    let (run, name) = (bench.run.clone(), name.to_owned());
    move |inner| inner.states(&run).last() == Some(&name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_waits_in_its_process() {
    let bench = bench().await;
    let flow = greet(|ctx, _| async move {
        ctx.pause().timeout(Duration::from_mins(1)).await?;
        ctx.task("after").run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok(())
    });
    let resume = async {
        bench.fake.until(last_state_is(&bench, "Paused")).await;
        assert_eq!(bench.fake.lock().task_states(), [""; 0]);
        bench.fake.lock().set_state_type(&bench.run, "RUNNING");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), resume);
    assert!(matches!(end.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Paused", "Completed"]);
    let details = &inner.calls_to("POST", "set_state")[1]["state"]["state_details"];
    assert_eq!((&details["pause_key"], &details["pause_reschedule"]), (&json!("1"), &json!(null)));
    assert!(details["pause_timeout"].is_string());
    assert_eq!(
        inner.lines()[1..3],
        [
            "20 Pausing flow, execution will continue when this flow run is resumed.",
            "20 Resuming flow run execution!",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_asks_for_input_and_gets_it() {
    let bench = bench().await;
    let flow = greet(|ctx, _| async move {
        let approval = ctx.pause().key("ask").wait_for_input::<Approval>("Is it good?").await?;
        assert!(approval.approved);
        ctx.info(approval.remark);
        Ok(())
    });
    let resume = async {
        bench.fake.until(|inner| inner.inputs.contains_key("paused-ask-description")).await;
        let mut inner = bench.fake.lock();
        inner.inputs.insert("paused-ask-response".to_owned(), json!({"approved": true, "remark": "fine"}));
        inner.set_state_type(&bench.run, "RUNNING");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), resume);
    assert!(matches!(end.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.inputs["paused-ask-description"], "Is it good?");
    assert_eq!(inner.inputs["paused-ask-schema"]["properties"]["approved"]["type"], "boolean");
    let keyset = json!({"description": "paused-ask-description", "response": "paused-ask-response",
        "schema": "paused-ask-schema"});
    assert_eq!(inner.calls_to("POST", "set_state")[1]["state"]["state_details"]["run_input_keyset"], keyset);
    assert!(inner.lines().contains(&"20 fine".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_of_another_form_fails_the_run_with_its_place() {
    let bench = bench().await;
    bench.fake.lock().runs.get_mut(&bench.run).unwrap().record["empirical_policy"]["pause_keys"] =
        json!(["1"]);
    bench.fake.lock().inputs.insert("paused-1-response".to_owned(), json!({"approved": "perhaps"}));
    let flow = greet(|ctx, _| async move {
        ctx.pause().wait_for_input::<Approval>("Is it good?").await?;
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    assert!(
        bench.fake.lock().last_message(&bench.run).contains(
            "read the input of the resumed flow run: at `approved`: invalid type: string \"perhaps\""
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_nobody_ends_fails_the_run() {
    let bench = bench().await;
    let flow = greet(|ctx, _| async move { Ok(ctx.pause().timeout(Duration::from_millis(30)).await?) });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    assert_eq!(bench.states(), ["Running", "Paused", "Failed"]);
    assert_eq!(
        bench.fake.lock().last_message(&bench.run),
        "Flow run encountered an exception: Flow run was paused and never resumed."
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_run_can_be_cancelled() {
    let bench = bench().await;
    bench.fake.lock().refuse_sockets = true;
    let flow = greet(|ctx, _| async move { Ok(ctx.pause().await?) });
    let cancel = async {
        bench.fake.until(last_state_is(&bench, "Paused")).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_run_ends_its_process_and_nothing_else() {
    let bench = bench().await;
    let reached = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&reached);
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let (seen, fake) = (Arc::clone(&seen), fake.clone());
        async move {
            let run = ctx.flow_run_id().to_string();
            let beside = ctx.task("beside").submit(move |_| {
                let (fake, run) = (fake.clone(), run.clone());
                async move {
                    fake.until(|inner| inner.states(&run).last().unwrap() == "Suspended").await;
                    Ok::<_, BoxError>(())
                }
            });
            ctx.suspend().await?;
            seen.store(true, Ordering::Relaxed);
            beside.await?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Left(_)));
    assert!(!reached.load(Ordering::Relaxed));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running", "Suspended"]);
    assert_eq!(inner.task_states().last().unwrap(), "beside: Completed");
    let details = &inner.calls_to("POST", "set_state")[1]["state"]["state_details"];
    assert_eq!((&details["pause_key"], &details["pause_reschedule"]), (&json!("1"), &json!(true)));
    let lines = inner.lines();
    let suspending = "20 Suspending flow run, execution will be rescheduled when this flow run is resumed.";
    assert!(lines.contains(&suspending.to_owned()));
    assert_eq!(lines.last().unwrap(), "20 Finished in state Suspended(type=PAUSED)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_run_goes_past_the_suspension_with_its_input() {
    let bench = bench().await;
    {
        let mut inner = bench.fake.lock();
        let policy = &mut inner.runs.get_mut(&bench.run).unwrap().record["empirical_policy"];
        policy["pause_keys"] = json!(["1"]);
        policy["resuming"] = json!(true);
        inner.inputs.insert("suspended-1-response".to_owned(), json!({"approved": true}));
    }
    let flow = greet(|ctx, _| async move {
        let approval = ctx.suspend().wait_for_input::<Approval>("Is it good?").await?;
        assert!(approval.approved);
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.states(), ["Running", "Completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_that_is_not_allowed_is_an_error_of_the_flow() {
    let bench = bench().await;
    let fake = bench.fake.clone();
    let flow = greet(move |ctx, _| {
        let fake = fake.clone();
        async move {
            let reason = "Cannot suspend flows without a deployment.";
            fake.lock().answers.push_back(json!({"status": "ABORT", "details": {"reason": reason}}));
            ctx.suspend().await?;
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Failed(_)));
    assert_eq!(
        bench.fake.lock().last_message(&bench.run),
        "Flow run encountered an exception: suspend the flow run: Cannot suspend flows without a deployment."
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_suspended_from_outside_stops_and_is_left() {
    let bench = bench().await;
    bench.fake.lock().refuse_sockets = true;
    let flow = greet(|ctx, _| async move {
        ctx.cancelled().await;
        Err("stopped".into())
    })
    .on_cancellation("never", |_, _, _| async { panic!("it is not cancelled") as Result<(), BoxError> });
    let suspend = async {
        bench.fake.until(last_state_is(&bench, "Running")).await;
        let mut inner = bench.fake.lock();
        inner.set_state_type(&bench.run, "PAUSED");
        inner.runs.get_mut(&bench.run).unwrap().record["state_name"] = json!("Suspended");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), suspend);
    assert!(matches!(end.unwrap(), End::Left(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.states(&bench.run), ["Running"]);
    assert_eq!(inner.lines().last().unwrap(), "20 Finished in state Suspended(type=PAUSED)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_run_of_a_deployment_is_handed_back_if_that_is_wanted() {
    for deployment in [Some(DEPLOYMENT), None] {
        let bench = Bench::with(|options| options.reschedule = true).await;
        {
            let mut inner = bench.fake.lock();
            let record = &mut inner.runs.get_mut(&bench.run).unwrap().record;
            record["deployment_id"] = json!(deployment);
            record["empirical_policy"]["retry_type"] = json!("in_process");
        }
        let flow = greet(|ctx, _| async move {
            ctx.cancelled().await;
            Err("stopped".into())
        });
        let terminate = async {
            bench.fake.until(last_state_is(&bench, "Running")).await;
            bench.engine.terminate();
        };
        let (end, ()) = tokio::join!(bench.execute(flow), terminate);
        let inner = bench.fake.lock();
        assert_eq!(inner.runs[&bench.run].record["empirical_policy"]["retry_type"], json!(null));
        if deployment.is_some() {
            assert!(matches!(end.unwrap(), End::Left(_)));
            assert_eq!(inner.states(&bench.run), ["Running", "AwaitingRetry"]);
            let line = "20 Rescheduled flow run for resubmission in response to SIGTERM";
            assert!(inner.lines().contains(&line.to_owned()));
        } else {
            assert!(matches!(end.unwrap(), End::Crashed(_)));
            assert_eq!(inner.states(&bench.run), ["Running", "Crashed"], "nobody would look for it");
        }
    }
}
