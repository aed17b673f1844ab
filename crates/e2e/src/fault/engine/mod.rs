//! Flows at work whose server is taken from them in every way, at seeded moments: in the end the server must hold of each
//! run what it holds of one that nobody disturbed, and every body of a task must have been executed once.
//!
//! - `plan` is what is to happen, all of it from one seed.
//! - `bench` is the server that all runs share, `line` what lies between one run and it, `witness` what the flows'
//!   bodies have done; the flow itself is [`crate::scenarios`]' marathon.
//! - `play` brings one run to its end, `drive` all of them.
//! - `verdict` judges each run, with the differences that `explain` knows; `report` is what came of it.

mod bench;
mod drive;
mod explain;
mod line;
mod plan;
mod play;
mod report;
mod verdict;
mod witness;

use anyhow::Result;

use crate::programs::Programs;

pub use plan::Options;
pub use report::{Offender, Report};
pub use verdict::Fault;

/// Makes the plan of these options true and tells what came of it. What a failure leaves for the reader is named on
/// standard error.
pub async fn run(options: Options) -> Result<Report> {
    let directory = super::directory()?;
    let bench = bench::Bench::start(Programs::find()?, options.tasks, directory.path()).await?;
    let outcome = drive::run(&bench, options).await;
    if !outcome.as_ref().is_ok_and(|report| report.ok) {
        super::keep(directory, &bench.server_log().await)?;
    }
    bench.stop().await?;
    outcome
}
