//! Runs through a worker: worker, engine and server are killed at seeded moments while runs go through, and in the
//! end every run must be in the state that tells what happened to it.
//!
//! - `plan` is what is to happen, all of it from one seed; `parts` are what is killed.
//! - `progress` tells how far the runs have come: moments are relative to it, not to a clock.
//! - `drive` creates the runs, cancels some, strikes, and waits until nothing moves any more.
//! - `verdict` judges each run by what its program witnessed; `report` is what came of it.

mod drive;
mod parts;
mod plan;
mod progress;
mod report;
mod verdict;

use anyhow::Result;

use crate::programs::Programs;

pub use plan::Options;
pub use report::{ContainerEnd, Fault, Offender, Report};

/// Makes the plan of these options true and tells what came of it. What a failure leaves for the reader is
/// named on standard error.
pub async fn run(options: Options) -> Result<Report> {
    let directory = super::directory()?;
    let parts = parts::Parts::start(&Programs::find()?, directory.path()).await?;
    let outcome = drive::run(&parts, options, directory.path()).await;
    if !outcome.as_ref().is_ok_and(|report| report.ok) {
        super::keep(directory, &parts.server.lock().await.log_path())?;
    }
    parts.stop().await?;
    outcome
}
