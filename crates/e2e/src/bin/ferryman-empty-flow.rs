//! A flow that does nothing: what a run costs before it does anything.

use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Context, Flow, Program};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Nothing {}

async fn empty(_: Context, _: Nothing) -> Result<(), BoxError> {
    Ok(())
}

fn main() -> std::process::ExitCode {
    Program::new("ferryman-empty-flow", env!("CARGO_PKG_VERSION")).flow(Flow::new("empty", empty)).main()
}
