//! Flows whose results are kept: the twins of `results.py`.

use std::time::Duration;

use prefect_api::id::FlowRunId;
use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Cache, Context, Flow, Program, TaskError};
use serde::{Deserialize, Serialize};

use super::Nothing;

pub(super) fn add(program: Program) -> Program {
    program
        .flow(Flow::new("persisted-results", persisted_results).persist_result())
        .flow(Flow::new("cached-task", cached_task))
        .flow(Flow::new("read-results", read_results))
}

#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    size: u64,
}

async fn persisted_results(ctx: Context, _: Nothing) -> Result<Measured, TaskError> {
    let measure = ctx.task("measure").persist_result();
    let measured = measure.run(|_| async { Ok::<_, BoxError>(Measured { size: 3 }) }).await?;
    Ok(measured.into_value())
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Of {
    /// A run of a Python flow.
    run: String,
}

/// Reads what a Python flow has kept: its result, and that of a task of the same key.
async fn read_results(ctx: Context, Of { run }: Of) -> Result<(), BoxError> {
    let run = ctx.client().read_flow_run(run.parse::<FlowRunId>()?).await?;
    let measured: Measured = ctx.result_of(&run).await?;
    let digest = ctx.task("digest").cached(Cache::key("digest-of-a"));
    let digest = digest.run(|_| async { Err::<u64, BoxError>("nothing is cached".into()) }).await?;
    ctx.info(format!("the flow gave {}, the task {}", measured.size, *digest));
    Ok(())
}

async fn cached_task(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    for name in ["a", "a", "bc"] {
        let cache = Cache::key(format!("digest-of-{name}")).expires_after(Duration::from_hours(1));
        let digest = |task: Context| async move {
            task.info("at work");
            Ok::<_, BoxError>(name.len())
        };
        ctx.task("digest").cached(cache).run(digest).await?;
    }
    Ok(())
}
