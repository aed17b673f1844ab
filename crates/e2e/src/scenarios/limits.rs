//! Flows under concurrency limits: the twins of `limits.py`.

use std::time::Duration;

use prefect_flow::{BoxError, Context, Flow, Program};

use super::Nothing;

const WORK: Duration = Duration::from_millis(500);

pub(super) fn add(program: Program) -> Program {
    program
        .flow(Flow::new("tag-limit", tag_limit))
        .flow(Flow::new("global-limit", global_limit))
        .flow(Flow::new("missing-limit", missing_limit))
        .flow(Flow::new("rate-limit", rate_limit))
}

async fn tag_limit(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let work = |_, ()| async {
        tokio::time::sleep(WORK).await;
        Ok::<_, BoxError>(())
    };
    for scarce in ctx.task("scarce").tag("scarce").map([(), (), ()], work) {
        scarce.await?;
    }
    Ok(())
}

async fn global_limit(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let work = |task: Context, ()| async move {
        let _slots = task.concurrency(["tape-drives"], 1).await?;
        tokio::time::sleep(WORK).await;
        Ok::<_, BoxError>(())
    };
    for tape in ctx.task("tape").map([(), ()], work) {
        tape.await?;
    }
    Ok(())
}

async fn missing_limit(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let _slots = ctx.concurrency(["no-such-limit"], 1).await?;
    ctx.info("unlimited");
    Ok(())
}

async fn rate_limit(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    ctx.rate_limit(["catalogue"], 1).await?;
    ctx.info("let through");
    Ok(())
}
