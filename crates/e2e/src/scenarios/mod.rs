//! The flows of the engines' differential, each the twin of a Python one in `crates/e2e/differential/engine`.
//! They say what those say, so that whatever differs in the server's records is the engines' doing. The `marathon`
//! alone is for the test of our engine under faults.

mod limits;
pub(crate) mod marathon;
mod results;
mod runs;
mod tasks;
mod told;

use std::process::ExitCode;

use prefect_flow::Program;
use prefect_flow::schemars::JsonSchema;
use prefect_flow_s3::S3Bucket;
use serde::{Deserialize, Serialize};

/// The program.
pub fn main() -> ExitCode {
    let program = Program::new("ferryman-scenarios", env!("CARGO_PKG_VERSION")).storage_block(S3Bucket);
    marathon::add(told::add(results::add(limits::add(runs::add(tasks::add(program)))))).main()
}

/// No parameters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "prefect_flow::schemars")]
struct Nothing {}

/// What the Python flows raise, with the name that is in front of it in Prefect's messages.
#[derive(Debug, thiserror::Error)]
#[error("ValueError: {0}")]
struct ValueError(&'static str);

/// The usual one.
const BOOM: ValueError = ValueError("boom");
