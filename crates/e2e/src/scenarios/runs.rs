//! Flows whose runs end, wait or start again in many ways: the twins of `runs.py`.

use std::time::Duration;

use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Context, Entered, Flow, Program, TaskError};
use serde::{Deserialize, Serialize};

use super::{BOOM, Nothing, ValueError};

/// Longer than anybody waits.
const ENDLESS: Duration = Duration::from_mins(10);
const PAUSE: Duration = Duration::from_mins(2);

pub(super) fn add(program: Program) -> Program {
    let hooks = Flow::new("hooks", hooks)
        .on_running("tell", tell)
        .on_completion("tell_too", tell_too)
        .on_completion("tell", tell)
        .on_failure("tell", tell)
        .on_cancellation("tell", tell);
    program
        .flow(Flow::new("flow-failure", flow_failure))
        .flow(Flow::new("flow-retries", flow_retries).retries(1, Duration::from_secs(1)))
        .flow(Flow::new("ui-retry", ui_retry))
        .flow(Flow::new("subflows", subflows))
        .flow(Flow::new("subflow-failure", subflow_failure))
        .flow(Flow::new("called", called))
        .flow(Flow::new("run-deployment", run_deployment))
        .flow(Flow::new("flow-timeout", flow_timeout).timeout(Duration::from_secs(1)))
        .flow(Flow::new("endless", endless))
        .flow(Flow::new("endless-task", endless_task))
        .flow(Flow::new("pause", pause))
        .flow(Flow::new("pause-for-input", pause_for_input))
        .flow(Flow::new("endless-retry", endless_retry))
        .flow(Flow::new("suspend", suspend))
        .flow(hooks)
}

/// Tells whoever drives this that the flow is at work.
fn mark() -> Result<(), BoxError> {
    Ok(std::fs::write(std::env::var("SCENARIO_MARK")?, "")?)
}

async fn step(ctx: &Context) -> Result<(), TaskError> {
    ctx.task("step").run(|_| async { Ok::<_, BoxError>("done") }).await.map(|_| ())
}

async fn flow_failure(_: Context, _: Nothing) -> Result<(), ValueError> {
    Err(BOOM)
}

async fn flow_retries(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    step(&ctx).await?;
    if ctx.attempt() == 1 { Err(BOOM.into()) } else { Ok(()) }
}

async fn ui_retry(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    step(&ctx).await?;
    if ctx.attempt() == 1 { Err(BOOM.into()) } else { Ok(()) }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Number {
    #[serde(default = "seven")]
    number: i64,
}

fn seven() -> i64 {
    7
}

async fn grandchild(ctx: Context, _: Number) -> Result<(), TaskError> {
    step(&ctx).await
}

async fn child(ctx: Context, Number { number }: Number) -> Result<(), BoxError> {
    ctx.info(format!("child {number}"));
    ctx.subflow(&Flow::new("grandchild", grandchild), Number { number: number + 1 }).await?;
    Ok(())
}

async fn subflows(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let child = Flow::new("child", child).run_name("child-of-{number}");
    for number in [1, 2] {
        ctx.subflow(&child, Number { number }).await?;
    }
    Ok(())
}

async fn subflow_failure(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    if ctx.subflow(&Flow::new("failing-child", flow_failure), Nothing {}).await.is_err() {
        ctx.warn("handled");
    }
    Ok(())
}

async fn called(ctx: Context, Number { number }: Number) -> Result<(), BoxError> {
    ctx.info(format!("called {number}"));
    Ok(())
}

async fn run_deployment(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let called = std::env::var("SCENARIO_CALLED")?;
    let run = ctx.run_deployment(called).parameters(&Number { number: 8 }).tag("by-us").await?;
    ctx.info(run.value.state_name.unwrap_or_default());
    Ok(())
}

async fn flow_timeout(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    step(&ctx).await?;
    tokio::time::sleep(ENDLESS).await;
    Ok(())
}

async fn endless(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    step(&ctx).await?;
    mark()?;
    ctx.unless_cancelled(tokio::time::sleep(ENDLESS)).await?;
    Ok(())
}

async fn endless_task(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let endless = |task: Context| async move {
        mark()?;
        task.unless_cancelled(tokio::time::sleep(ENDLESS)).await?;
        Ok::<_, BoxError>(())
    };
    ctx.task("endless_step").run(endless).await?;
    Ok(())
}

async fn pause(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    step(&ctx).await?;
    ctx.pause().timeout(PAUSE).await?;
    step(&ctx).await?;
    Ok(())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Approval {
    text: String,
    #[serde(default = "two")]
    number: i64,
}

fn two() -> i64 {
    2
}

async fn pause_for_input(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let pause = ctx.pause().timeout(PAUSE).wait_for_input::<Approval>("");
    let Approval { text, number } = pause.await?;
    ctx.info(format!("{text} {number}"));
    Ok(())
}

async fn endless_retry(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let much_later = |_| async {
        mark()?;
        Err::<(), BoxError>(BOOM.into())
    };
    ctx.task("tried_much_later").retries(1, ENDLESS).run(much_later).await?;
    Ok(())
}

async fn suspend(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    step(&ctx).await?;
    ctx.suspend().timeout(PAUSE).await?;
    step(&ctx).await?;
    Ok(())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Fails {
    #[serde(default)]
    fails: bool,
}

async fn tell(ctx: Context, _: Fails, entered: Entered) -> Result<(), BoxError> {
    ctx.info(format!("told of {}", entered.name));
    Ok(())
}

async fn tell_too(_: Context, _: Fails, _: Entered) -> Result<(), ValueError> {
    Err(ValueError("no hook"))
}

async fn hooks(ctx: Context, Fails { fails }: Fails) -> Result<(), TaskError> {
    let tell = |task: Context, entered: Entered| async move {
        task.info(format!("told of {}", entered.name));
        Ok::<_, BoxError>(())
    };
    let hooked =
        ctx.task("hooked").on_completion("tell", tell).on_failure("tell", tell).on_running("tell", tell);
    hooked.run(|_| async move { if fails { Err(BOOM) } else { Ok(()) } }).await.map(|_| ())
}
