//! Flows of tasks: the twins of `tasks.py`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Context, Flow, Program, TaskError};
use serde::{Deserialize, Serialize};

use super::{BOOM, Nothing, ValueError};

pub(super) fn add(program: Program) -> Program {
    let parameters = Flow::new("parameters", parameters)
        .description("Takes parameters.")
        .run_name("parameters-{text}")
        .version("7");
    program
        .flow(Flow::new("plain", plain))
        .flow(parameters)
        .flow(Flow::new("concurrent", concurrent))
        .flow(Flow::new("mapped", mapped))
        .flow(Flow::new("dependencies", dependencies))
        .flow(Flow::new("nested-tasks", nested_tasks))
        .flow(Flow::new("task-retries", task_retries))
        .flow(Flow::new("task-retries-delayed", task_retries_delayed))
        .flow(Flow::new("task-failure", task_failure))
        .flow(Flow::new("task-failure-handled", task_failure_handled))
        .flow(Flow::new("not-ready", not_ready))
        .flow(Flow::new("task-timeout", task_timeout))
}

async fn plain(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let words = ctx.task("compose").run(|_| async { Ok::<_, BoxError>("hello you") }).await?;
    ctx.info(*words);
    Ok(())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Parameters {
    text: String,
    #[serde(default = "three")]
    number: i64,
    #[serde(default)]
    flag: Option<bool>,
    #[serde(default = "one_and_two")]
    sizes: Vec<i64>,
}

fn three() -> i64 {
    3
}

fn one_and_two() -> Vec<i64> {
    vec![1, 2]
}

async fn parameters(ctx: Context, given: Parameters) -> Result<(), BoxError> {
    ctx.info(format!("{} {} {}", given.text, given.number, given.sizes.last().copied().unwrap_or_default()));
    Ok(())
}

async fn concurrent(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let one = ctx.task("one").tags(["first", "second"]).submit(|_| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok::<_, BoxError>(1)
    });
    let two = ctx.task("two").run_name("the-second").submit(|_| async { Ok::<_, BoxError>(2) });
    ctx.info(one.await?.into_value() + two.await?.into_value());
    Ok(())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Mapped {
    #[serde(default = "five")]
    count: u64,
}

fn five() -> u64 {
    5
}

async fn mapped(ctx: Context, given: Mapped) -> Result<(), BoxError> {
    let square = |_, number: u64| async move { Ok::<_, BoxError>(number * number) };
    let mut sum = 0;
    for square in ctx.task("square").map(0..given.count, square) {
        sum += square.await?.into_value();
    }
    ctx.info(sum);
    Ok(())
}

async fn dependencies(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let first = ctx.task("source").run(|_| async { Ok::<_, BoxError>(vec![1]) }).await?;
    let middle = ctx.task("middle").input("items", &first);
    let items = first.value;
    let second = middle.run(|_| async { Ok::<_, BoxError>([items.clone(), vec![2]].concat()) }).await?;
    let third = ctx.task("late").wait_for(&second).run(|_| async { Ok::<_, BoxError>(vec![3]) }).await?;
    let sink = ctx.task("sink").input("left", &second).input("right", &third);
    let all = sink
        .run(|_| async { Ok::<_, BoxError>([second.value.clone(), third.value.clone()].concat()) })
        .await?;
    ctx.info(all.len());
    Ok(())
}

async fn nested_tasks(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let inner = |task: Context| async move {
        task.info("inside");
        Ok::<_, BoxError>(())
    };
    let outer = |task: Context| async move { task.task("inner").run(inner).await.map(|_| ()) };
    ctx.task("outer").run(outer).await?;
    Ok(())
}

async fn task_retries(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let attempts = AtomicU32::new(0);
    let unsteady =
        |_| async { if attempts.fetch_add(1, Ordering::Relaxed) < 2 { Err(BOOM) } else { Ok(()) } };
    ctx.task("unsteady").retries(2, Duration::ZERO).run(unsteady).await?;
    Ok(())
}

/// A task that fails.
async fn fail(_: Context) -> Result<(), ValueError> {
    Err(BOOM)
}

async fn task_retries_delayed(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let hopeless = ctx.task("hopeless").retries(1, Duration::from_secs(1)).run(fail).await;
    if hopeless.is_ok() { Err("it did not fail".into()) } else { Ok(()) }
}

async fn task_failure(ctx: Context, _: Nothing) -> Result<(), TaskError> {
    ctx.task("failing").run(fail).await.map(|_| ())
}

async fn task_failure_handled(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    if ctx.task("failing").run(fail).await.is_err() {
        ctx.warn("handled");
    }
    Ok(())
}

async fn not_ready(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let failed = ctx.task("failing").submit(fail);
    let dependent = ctx.task("dependent").input("value", &failed);
    if dependent.submit(|_| async { Ok::<_, BoxError>(()) }).await.is_err() {
        ctx.info("NotReady");
    }
    Ok(())
}

async fn task_timeout(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let sluggish = ctx.task("sluggish").timeout(Duration::from_millis(500));
    let ended = sluggish.run(|_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Ok::<_, BoxError>(())
    });
    if ended.await.is_ok() { Err("it was not too late".into()) } else { Ok(()) }
}
