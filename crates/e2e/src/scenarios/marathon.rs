//! A long way, for the test of the engine under faults: it uses all that a server has to be told, and asks the server
//! for something every now and then.
//!
//! What it does is the same in every run. What its tasks' bodies have done is witnessed in a file, by lines.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Context, Flow, Handle, Program, Upstream as _};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::BOOM;

/// Names the file that bodies write a line into each time they are executed.
pub(crate) const WITNESS: &str = "SCENARIO_WITNESS";
/// The flow.
pub(crate) const FLOW: &str = "marathon";
/// The concurrency limit that a subflow needs a slot of.
pub(crate) const TRACK: &str = "track";
/// The tag of tasks that need a slot.
pub(crate) const NARROW: &str = "narrow";
/// The secret that is read between the legs.
pub(crate) const BATON: &str = "baton";

/// Parts of the way; after each the server is needed.
const LEGS: u64 = 5;
/// Chains of tasks that are at work beside each other.
const LANES: u64 = 8;
/// One in so many tasks of a leg is a subflow's.
const INSIDE: u64 = 5;
const WORK: Duration = Duration::from_millis(300);
/// The leg whose subflow fails at first.
const TRIED_AGAIN: u64 = 2;

pub(super) fn add(program: Program) -> Program {
    program.flow(Flow::new(FLOW, marathon))
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Way {
    /// How many tasks.
    #[serde(default = "five_hundred")]
    tasks: u64,
}

fn five_hundred() -> u64 {
    500
}

#[derive(Debug, Serialize)]
struct Row {
    leg: u64,
    tasks: u64,
}

async fn marathon(ctx: Context, Way { tasks }: Way) -> Result<(), BoxError> {
    ctx.info(format!("{tasks} tasks in {LEGS} legs"));
    ctx.markdown("way", format!("# {tasks} tasks"), Some("What is to be done.")).await?;
    let progress = ctx.progress("progress", Some("Legs that are done."))?;
    let mut rows = Vec::new();
    for number in 1..=LEGS {
        let (first, last) = (tasks * (number - 1) / LEGS, tasks * number / LEGS);
        let middle = last - (last - first) / INSIDE;
        let before = run_lanes(&ctx, first..middle).await?;
        let length = ctx.secret(BATON).await?.expose_secret().len();
        ctx.info(format!("leg {number}: a baton of {length} characters"));
        let _slot = ctx.concurrency([TRACK], 1).await?;
        let flow = Flow::new("leg", leg).run_name("leg {number}").retries(1, Duration::from_secs(1));
        let mut inside = ctx.subflow(&flow, Leg { number, first: middle, last });
        if let Some(before) = &before {
            inside = inside.input("before", before);
        }
        inside.await?;
        progress.set_of(number, LEGS);
        rows.push(Row { leg: number, tasks: last - first });
    }
    ctx.table("legs", &rows, Some("What was done.")).await?;
    Ok(())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Leg {
    number: u64,
    first: u64,
    last: u64,
}

async fn leg(ctx: Context, Leg { number, first, last }: Leg) -> Result<(), BoxError> {
    run_lanes(&ctx, first..last).await?;
    if number == TRIED_AGAIN && ctx.attempt() == 1 { Err(BOOM.into()) } else { Ok(()) }
}

/// Runs these steps in lanes; gives the last task of the first lane.
async fn run_lanes(ctx: &Context, steps: Range<u64>) -> Result<Option<Handle>, BoxError> {
    let Range { start, end } = steps;
    let lane = |number| async move {
        let mut before = None;
        for step in (start + number..end).step_by(usize::try_from(LANES)?) {
            before = run_step(ctx, step, before.as_ref()).await?;
        }
        Ok::<_, BoxError>(before)
    };
    let ends = try_join_all((0..LANES).map(lane)).await?;
    Ok(ends.into_iter().next().flatten())
}

/// Runs one step; gives its task, if that has completed.
async fn run_step(ctx: &Context, number: u64, before: Option<&Handle>) -> Result<Option<Handle>, BoxError> {
    let mut task = ctx.task("step").run_name(format!("step {number}"));
    if let Some(before) = before {
        task = task.input("before", before);
    }
    // (how often it fails, before it completes or for good)
    let (task, failures) = match number % 25 {
        3 | 13 => (task.retries(1, Duration::ZERO), 1),
        7 => (task.retries(2, [Duration::from_millis(500), Duration::from_secs(1)]), 2),
        11 => (task.tag(NARROW), 0),
        21 => (task, u32::MAX),
        _ => (task, 0),
    };
    let attempts = Arc::new(AtomicU32::new(0));
    let body = move |task: Context| {
        let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            witness(&task, number, attempt)?;
            task.info(format!("step {number}, attempt {attempt}"));
            tokio::time::sleep(WORK).await;
            match number % 25 {
                5 => task.table(&format!("step-{number}"), &[Row { leg: 0, tasks: number }], None).await?,
                9 => {
                    let inner = task.task("inner").run_name(format!("inner {number}"));
                    let inside = |inner: Context| async move {
                        inner.warn("inside");
                        Ok::<_, BoxError>(())
                    };
                    inner.run(inside).await?;
                }
                _ => {}
            }
            if attempt <= failures { Err(BoxError::from(BOOM)) } else { Ok(()) }
        }
    };
    let ended = task.submit(body).await;
    Ok(ended.ok().map(|done| done.handle().clone()))
}

/// Witnesses that the body of a task is executed.
fn witness(task: &Context, number: u64, attempt: u32) -> Result<(), BoxError> {
    let line =
        format!("{} (attempt {}): step {number}, attempt {attempt}\n", task.flow_run_name(), task.attempt());
    // In one piece, so that the lines of others are not torn.
    let mut file = OpenOptions::new().create(true).append(true).open(std::env::var(WITNESS)?)?;
    Ok(file.write_all(line.as_bytes())?)
}
