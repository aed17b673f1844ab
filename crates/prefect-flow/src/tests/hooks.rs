//! Hooks: when they run, what they are told, and what the log says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::{Bench, Greeting, greet};
use crate::engine::{self, Death, End, Error};
use crate::entry::{Job, work};
use crate::error::BoxError;
use crate::{Context, Entered, Exit, Flow, Program};

/// What hooks were called with, in order.
type Calls = Arc<Mutex<Vec<String>>>;

fn note(calls: &Calls, hook: &str, entered: &Entered) {
    calls.lock().unwrap().push(format!(
        "{hook}: {} {} {:?}",
        entered.kind.as_str(),
        entered.name,
        entered.message
    ));
}

/// The flow with a hook for everything.
fn hooked(flow: Flow<Greeting>, calls: &Calls) -> Flow<Greeting> {
    let hook = |name: &'static str| {
        let calls = Arc::clone(calls);
        move |_: Context, _: Greeting, entered: Entered| {
            note(&calls, name, &entered);
            async { Ok::<_, BoxError>(()) }
        }
    };
    flow.on_running("running", hook("running"))
        .on_completion("completion", hook("completion"))
        .on_failure("failure", hook("failure"))
        .on_cancellation("cancellation", hook("cancellation"))
        .on_crashed("crashed", hook("crashed"))
}

fn calls() -> Calls {
    Arc::default()
}

fn seen(calls: &Calls) -> Vec<String> {
    calls.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_that_completes_are_told_so_in_prefects_words() {
    let (bench, calls) = (Bench::new().await, calls());
    let flow = greet(|ctx, _| async move {
        ctx.info("working");
        Ok(())
    });
    assert!(matches!(bench.execute(hooked(flow, &calls)).await.unwrap(), End::Completed(_)));
    assert_eq!(seen(&calls), ["running: RUNNING Running \"\"", "completion: COMPLETED Completed \"\""]);
    assert_eq!(
        bench.fake.lock().lines(),
        [
            "20 Running hook 'running' in response to entering state 'Running'",
            "20 Hook 'running' finished running successfully",
            "20 Beginning flow run 'versed-caracal' for flow 'greet'",
            "20 working",
            "20 Running hook 'completion' in response to entering state 'Completed'",
            "20 Hook 'completion' finished running successfully",
            "20 Finished in state Completed()",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_failure_wait_for_the_last_attempt() {
    let (bench, calls) = (Bench::new().await, calls());
    let flow = greet(|_, _| async { Err("no".into()) }).retries(1, Duration::ZERO);
    assert!(matches!(bench.execute(hooked(flow, &calls)).await.unwrap(), End::Failed(_)));
    assert_eq!(
        seen(&calls),
        [
            "running: RUNNING Running \"\"",
            "running: RUNNING Running \"\"",
            "failure: FAILED Failed \"Flow run encountered an exception: no\"",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_that_takes_too_long_are_those_of_a_failure() {
    let bench = Bench::with(|options| options.terminate_grace = Duration::ZERO).await;
    let calls = calls();
    let flow = greet(|_, _| std::future::pending()).timeout(Duration::from_millis(20));
    bench.execute(hooked(flow, &calls)).await.unwrap();
    assert_eq!(seen(&calls)[1], "failure: FAILED TimedOut \"Flow run exceeded timeout of 0.02 second(s)\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_panic_are_those_of_a_crash() {
    let (bench, calls) = (Bench::new().await, calls());
    bench.execute(hooked(greet(|_, _| async { panic!("index") }), &calls)).await.unwrap();
    assert_eq!(seen(&calls)[1], "crashed: CRASHED Crashed \"Flow run panicked: index\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cancelled_run_come_between_its_code_and_its_last_state() {
    let (bench, calls) = (Bench::new().await, calls());
    let (run, fake) = (bench.run.clone(), bench.fake.clone());
    let counted = Arc::clone(&calls);
    let flow = greet(|ctx, _| async move {
        ctx.cancelled().await;
        ctx.info("undone");
        Err("cancelled".into())
    })
    .on_cancellation("tell", move |ctx, greeting, entered| {
        note(&counted, &greeting.name, &entered);
        assert_eq!(fake.lock().states(&run), ["Running"]);
        assert!(!ctx.is_cancelled(), "what the hook does is not what is cancelled");
        async { Ok::<_, BoxError>(()) }
    });
    let cancel = async {
        bench.fake.until(|inner| inner.states(&bench.run) == ["Running"]).await;
        while bench.fake.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        bench.cancel();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
    assert_eq!(seen(&calls), ["you: CANCELLING Cancelling \"Flow run was cancelled.\""]);
    let lines = bench.fake.lock().lines();
    let at = |part: &str| lines.iter().position(|line| line.contains(part)).unwrap();
    assert!(at("undone") < at("Running hook 'tell' in response to entering state 'Cancelling'"));
    assert!(at("Hook 'tell' finished") < at("Cancelled flow run"));
}

#[tokio::test(flavor = "multi_thread")]
async fn are_for_code_that_ran() {
    let (bench, calls) = (Bench::new().await, calls());
    bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    bench.execute(hooked(greet(|_, _| async { panic!("must not run") }), &calls)).await.unwrap();
    assert_eq!(seen(&calls), [""; 0], "cancelled before the start");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_fail_or_panic_do_not_keep_the_others_from_running() {
    let bench = Bench::new().await;
    let flow = greet(|_, _| async { Ok(()) })
        .on_completion("first", |_, _, _| async { Err::<(), _>("no route to host") })
        .on_completion("second", |_, _, _| async { panic!("index") as Result<(), BoxError> })
        .on_completion("third", |ctx, _, _| async move {
            ctx.info("cleaned");
            Ok::<_, BoxError>(())
        });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)), "hooks change no end");
    let lines = bench.fake.lock().lines();
    let hooks = lines.iter().position(|line| line.contains("'first'")).unwrap();
    assert_eq!(
        lines[hooks..],
        [
            "20 Running hook 'first' in response to entering state 'Completed'",
            "40 An error was encountered while running hook 'first': no route to host",
            "20 Running hook 'second' in response to entering state 'Completed'",
            "40 An error was encountered while running hook 'second': it panicked: index",
            "20 Running hook 'third' in response to entering state 'Completed'",
            "20 cleaned",
            "20 Hook 'third' finished running successfully",
            "20 Finished in state Completed()",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_terminated_process_have_its_grace() {
    let bench = Bench::with(|options| options.terminate_grace = Duration::from_millis(10)).await;
    let flow = greet(|ctx, _| async move {
        ctx.cancelled().await;
        Err("stopped".into())
    })
    .on_crashed("endless", |_, _, _| std::future::pending::<Result<(), BoxError>>())
    .on_crashed("next", |_, _, _| async { Ok::<_, BoxError>(()) });
    let terminate = async {
        bench.fake.until(|inner| inner.states(&bench.run) == ["Running"]).await;
        bench.engine.terminate();
    };
    let (end, ()) = tokio::join!(bench.execute(flow), terminate);
    assert!(matches!(end.unwrap(), End::Crashed(_)));
    let lines = bench.fake.lock().lines();
    let has = |line: &str| assert!(lines.iter().any(|it| it == line), "{line} in {lines:#?}");
    has("40 An error was encountered while running hook 'endless': it took too long");
    has("40 Hook 'next' was not run: there is no time left for hooks");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_running_give_way_to_a_cancellation() {
    let bench = Bench::with(|options| options.poll_interval = Duration::from_millis(20)).await;
    bench.fake.lock().refuse_sockets = true;
    let flow = greet(|_, _| async { panic!("must not run") })
        .on_running("endless", |_, _, _| std::future::pending::<Result<(), BoxError>>());
    let cancel = async {
        bench.fake.until(|inner| inner.states(&bench.run) == ["Running"]).await;
        bench.fake.lock().set_state_type(&bench.run, "CANCELLING");
    };
    let (end, ()) = tokio::join!(bench.execute(flow), cancel);
    assert!(matches!(end.unwrap(), End::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_subflows_are_run_by_the_process_too() {
    let (bench, calls) = (Bench::new().await, calls());
    let child = hooked(
        Flow::new("child", |_: Context, _: Greeting| async { Err::<(), BoxError>("no".into()) }),
        &calls,
    );
    let flow = greet(move |ctx, greeting| {
        let child = child.clone();
        async move {
            assert!(ctx.subflow(&child, greeting).await.is_err());
            Ok(())
        }
    });
    bench.execute(flow).await.unwrap();
    assert_eq!(seen(&calls)[1], "failure: FAILED Failed \"Flow run encountered an exception: no\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_tasks_run_before_those_that_wait() {
    let bench = Bench::new().await;
    let flow = greet(|ctx, _| async move {
        let say = |words: &'static str| {
            move |ctx: Context, entered: Entered| async move {
                ctx.info(format!("{words} {} {}", entered.name, entered.message));
                Ok::<_, BoxError>(())
            }
        };
        let first = ctx
            .task("first")
            .retries(1, Duration::ZERO)
            .on_running("r", say("r"))
            .on_failure("f", say("f"))
            .on_completion("c", say("c"))
            .run(|task| async move {
                task.info("at work");
                Err::<(), _>("no")
            });
        assert!(first.await.is_err());
        ctx.task("second").on_completion("c", say("c")).run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok(())
    });
    bench.execute(flow).await.unwrap();
    let inner = bench.fake.lock();
    let lines: Vec<String> = inner
        .lines()
        .into_iter()
        .filter(|line| !line.contains("hook 'r'") && !line.contains("Hook 'r'"))
        .collect();
    assert_eq!(
        lines[1..lines.len() - 1],
        [
            "20 r Running ",
            "20 at work",
            "20 Task run failed with exception: no - Retry 1/1 will start immediately",
            "20 r Retrying ",
            "20 at work",
            "40 Task run failed with exception: no - Retries are exhausted",
            "20 Running hook 'f' in response to entering state 'Failed'",
            "20 f Failed Task run encountered an exception no",
            "20 Hook 'f' finished running successfully",
            "40 Finished in state Failed('Task run encountered an exception no')",
            "20 Running hook 'c' in response to entering state 'Completed'",
            "20 c Completed ",
            "20 Hook 'c' finished running successfully",
            "20 Finished in state Completed()",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_whose_process_died_are_run_by_the_command() {
    let (bench, calls) = (Bench::new().await, calls());
    {
        let mut inner = bench.fake.lock();
        inner.blocks.insert("secret/github".to_owned(), json!({"value": "hush"}));
        let record = &mut inner.runs.get_mut(&bench.run).unwrap().record;
        record["state_type"] = json!("CRASHED");
        record["state"] = json!({"id": uuid::Uuid::new_v4(), "type": "CRASHED", "name": "Crashed",
            "timestamp": "2026-11-22T04:47:05.571364Z", "message": "out of memory", "state_details": {}});
    }
    let flow = hooked(greet(|_, _| async { panic!("must not run") }), &calls)
        .on_crashed("secret", |ctx, _, _| async move { ctx.secret("github").await.map(|_| ()) });
    let job = Job::Hook(Death::Crashed, bench.run.parse().unwrap());
    let exit = work(&bench.engine, Program::new("test", "1.0").flow(flow), job).await;
    bench.engine.close().await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(seen(&calls), ["crashed: CRASHED Crashed \"out of memory\""]);
    let inner = bench.fake.lock();
    assert!(inner.calls_to("POST", "set_state").is_empty());
    assert!(inner.events.is_empty());
    assert_eq!(
        inner.lines(),
        [
            "20 Running hook 'crashed' in response to entering state 'Crashed'",
            "20 Hook 'crashed' finished running successfully",
            "20 Running hook 'secret' in response to entering state 'Crashed'",
            "20 Hook 'secret' finished running successfully",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_killed_cancelled_run_see_what_they_would_have_seen_in_it() {
    for state in ["CANCELLING", "CANCELLED"] {
        let (bench, calls) = (Bench::new().await, calls());
        bench.fake.lock().set_state_type(&bench.run, state);
        let program = Program::new("test", "1.0").flow(hooked(greet(|_, _| async { Ok(()) }), &calls));
        let id = bench.run.parse().unwrap();
        assert_eq!(engine::after_death(&bench.engine, &program, id, Death::Cancelled).await.unwrap(), 0);
        assert_eq!(seen(&calls), ["cancellation: CANCELLING Cancelling \"Flow run was cancelled.\""]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_that_goes_on_are_refused() {
    for (state, death) in [
        ("RUNNING", Death::Crashed),
        ("SCHEDULED", Death::Crashed),
        ("CANCELLED", Death::Crashed),
        ("CRASHED", Death::Cancelled),
        ("COMPLETED", Death::Cancelled),
    ] {
        let (bench, calls) = (Bench::new().await, calls());
        bench.fake.lock().set_state_type(&bench.run, state);
        let program = Program::new("test", "1.0").flow(hooked(greet(|_, _| async { Ok(()) }), &calls));
        let id = bench.run.parse().unwrap();
        let error = engine::after_death(&bench.engine, &program, id, death).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("run the {} hooks of flow run {id}: its state is {state}", death.hooks())
        );
        assert_eq!(seen(&calls), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn that_cannot_be_had_are_told_in_the_runs_log() {
    let bench = Bench::new().await;
    bench.fake.lock().set_state_type(&bench.run, "CRASHED");
    let id = bench.run.parse().unwrap();
    let program = Program::new("test", "1.0");
    let error = engine::after_death(&bench.engine, &program, id, Death::Crashed).await.unwrap_err();
    assert!(matches!(error, Error::UnknownFlow { .. }));
    bench.engine.close().await;
    let line = format!(
        "30 Runner failed to retrieve flow to execute on_crashed hooks for flow run '{id}': flow 'greet' is not in \
         this program; it has none"
    );
    assert_eq!(bench.fake.lock().lines(), [line]);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_fail_or_hang_make_the_command_fail() {
    let bench = Bench::with(|options| options.hook_limit = Duration::from_millis(10)).await;
    {
        let mut inner = bench.fake.lock();
        inner.set_state_type(&bench.run, "CRASHED");
    }
    let flow = greet(|_, _| async { Ok(()) })
        .on_crashed("endless", |_, _, _| std::future::pending::<Result<(), BoxError>>());
    let job = Job::Hook(Death::Crashed, bench.run.parse().unwrap());
    let exit = work(&bench.engine, Program::new("test", "1.0").flow(flow), job).await;
    assert_eq!(exit, Exit::Failure);
    assert!(bench.fake.lock().calls_to("POST", "set_state").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn need_parameters_that_their_flow_takes() {
    let (bench, calls) = (Bench::new().await, calls());
    {
        let mut inner = bench.fake.lock();
        inner.set_state_type(&bench.run, "CRASHED");
        inner.runs.get_mut(&bench.run).unwrap().record["parameters"] = json!({"count": "many"});
    }
    let program = Program::new("test", "1.0").flow(hooked(greet(|_, _| async { Ok(()) }), &calls));
    let id = bench.run.parse().unwrap();
    assert_eq!(engine::after_death(&bench.engine, &program, id, Death::Crashed).await.unwrap(), 1);
    bench.engine.close().await;
    assert_eq!(
        bench.fake.lock().lines(),
        [
            "40 The hooks for state 'Crashed' cannot be run: parameter `count`: invalid type: string \"many\", expected u32"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn are_run_too_when_the_process_ends_before_the_flow_begins() {
    let (bench, calls) = (Bench::new().await, calls());
    let run = bench.run.clone();
    bench.fake.lock().held.push(format!("/flow_runs/{run}"));
    let terminate = async {
        bench.fake.until(|inner| !inner.calls_to("GET", "/flow_runs/").is_empty()).await;
        bench.engine.terminate();
        bench.fake.until(|inner| inner.states(&run) == ["Crashed"]).await;
        bench.fake.release();
    };
    let flow = hooked(greet(|_, _| async { panic!("must not run") }), &calls);
    let (end, ()) = tokio::join!(bench.execute(flow), terminate);
    assert!(matches!(end.unwrap(), End::Crashed(_)));
    assert_eq!(seen(&calls).len(), 1);
    assert!(seen(&calls)[0].starts_with("crashed: CRASHED"));
}
