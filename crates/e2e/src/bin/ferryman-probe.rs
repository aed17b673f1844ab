//! A flow that uses what a Prefect server offers, or waits until it is cancelled: for tests against servers and
//! proxies of many kinds.

use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Context, Flow, Program};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Act {
    /// Wait for the cancellation.
    #[serde(default)]
    linger: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Nothing {}

async fn probe(ctx: Context, act: Act) -> Result<(), BoxError> {
    if act.linger {
        let wait = ctx.task("wait").run(|task| async move {
            task.unless_cancelled(std::future::pending::<()>()).await?;
            Ok::<_, BoxError>(())
        });
        wait.await?;
        return Ok(());
    }
    let is_absent = ctx.variable::<String>("absent").await?.is_none();
    let counted = ctx.task("count").tag("counted").run(|task| async move {
        task.info("counted");
        Ok::<_, BoxError>(is_absent)
    });
    let counted = counted.await?;
    ctx.subflow(&inner(), Nothing {}).input("counted", &counted).await?;
    ctx.progress("progress", None)?.set_of(1, 1);
    ctx.table("table", &[1, 2], Some("numbers")).await?;
    Ok(())
}

fn inner() -> Flow<Nothing> {
    Flow::new("inner", |ctx: Context, _: Nothing| async move {
        ctx.task("inside").run(|_| async { Ok::<_, BoxError>(()) }).await?;
        Ok::<_, BoxError>(())
    })
}

fn main() -> std::process::ExitCode {
    Program::new("ferryman-probe", env!("CARGO_PKG_VERSION"))
        .flow(Flow::new("probe", probe))
        .flow(inner())
        .main()
}
