//! The flows that the engines are measured with, each the twin of a Python one in `crates/e2e/peer/flows.py`: what a run
//! costs before it does anything, and what tasks cost that do nothing.

use std::process::ExitCode;

use prefect_flow::schemars::JsonSchema;
use prefect_flow::{BoxError, Context, Flow, Program};
use serde::{Deserialize, Serialize};

use crate::measure::cpu;
use crate::print;

/// With this the flow that does nothing tells the CPU seconds that were spent before its first line, all processes
/// together.
pub const CPU_BEFORE: &str = "CPU before the first line: ";

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Nothing {}

async fn empty(_: Context, _: Nothing) -> Result<(), BoxError> {
    print(&format!("{CPU_BEFORE}{}", cpu::of_this_process()?));
    Ok(())
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Many {
    tasks: usize,
}

async fn many(ctx: Context, many: Many) -> Result<(), BoxError> {
    for task in ctx.task("nothing").map(0..many.tasks, |_, _| async { Ok::<_, BoxError>(()) }) {
        task.await?;
    }
    Ok(())
}

/// The program.
pub fn main() -> ExitCode {
    Program::new("ferryman-measured", env!("CARGO_PKG_VERSION"))
        .flow(Flow::new("empty", empty))
        .flow(Flow::new("many", many))
        .main()
}
