//! A flow that asks a person, waits without a process, and has hooks for each way in which it can end.

use std::process::ExitCode;
use std::time::Duration;

use prefect_flow::{BoxError, Context, Entered, Flow, Program};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `publish` takes.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Publication {
    /// What is published.
    title: String,
    /// Seconds that publishing takes.
    #[serde(default)]
    seconds: u64,
}

/// What the person is asked.
#[derive(Deserialize, JsonSchema)]
struct Approval {
    /// Whether it may be published.
    approved: bool,
    /// Why, or why not.
    #[serde(default)]
    remark: String,
}

async fn publish(ctx: Context, publication: Publication) -> Result<(), BoxError> {
    let approval = ctx
        .suspend()
        .timeout(Duration::from_hours(24))
        .wait_for_input::<Approval>(format!("May **{}** be published?", publication.title))
        .await?;
    if !approval.approved {
        return Err(format!("{} is not approved: {}", publication.title, approval.remark).into());
    }
    let _press = ctx.concurrency(["printing-press"], 1).await?;
    ctx.task("print")
        .run(|task| async move {
            task.unless_cancelled(tokio::time::sleep(Duration::from_secs(publication.seconds))).await?;
            Ok::<_, BoxError>(())
        })
        .await?;
    Ok(())
}

async fn tell(ctx: Context, publication: Publication, entered: Entered) -> Result<(), BoxError> {
    ctx.warn(format!("{} was not published: {} {}", publication.title, entered.name, entered.message));
    Ok(())
}

fn main() -> ExitCode {
    let publish = Flow::new("publish", publish)
        .description("Publishes what a person has approved")
        .run_name("publish-{title}")
        .on_failure("tell", tell)
        .on_cancellation("tell", tell)
        .on_crashed("tell", tell);
    Program::new("approval", env!("CARGO_PKG_VERSION")).about("Asks before it publishes").flow(publish).main()
}
