//! Job variables through both workers.
//!
//! - [`case`] holds the cases: what a deployment and its run ask for.
//! - `bench` is the world that they run in: server, pools, blocks, networks, a registry.
//! - `drive` runs all cases through one worker and notes what the engine got.
//! - `container` is what counts of a container.
//! - [`explain`] knows the differences that we stand by.

mod bench;
pub mod case;
mod container;
mod drive;
pub mod explain;
mod report;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use testkit::docker::Engine;

use self::bench::Bench;
use self::drive::Side;
pub use self::report::Report;
use super::{Options, Part};
use crate::programs::Programs;

/// Compares until the end or until `interrupted` resolves, and leaves nothing behind either way.
pub async fn run(options: &Options, interrupted: impl Future<Output = ()>) -> Result<Report> {
    let cases = options.part.of(case::all()?)?;
    let engine = Arc::new(Engine::connect().await?);
    let outcome = tokio::select! {
        () = interrupted => Err(anyhow::anyhow!("interrupted")),
        outcome = compare(Arc::clone(&engine), &cases, options) => outcome,
    };
    let cleaned = engine.clean_up().await.context("failed to clean up after the differential");
    let report = outcome?;
    cleaned?;
    Ok(report)
}

async fn compare(engine: Arc<Engine>, cases: &[case::Case], options: &Options) -> Result<Report> {
    let bench = Bench::start(engine, Programs::find()?).await?;
    let outcome = async {
        let runs = bench.deploy(cases).await?;
        let python = drive::all(&bench, &runs, Side::Python, options.quiet).await?;
        let ours = drive::all(&bench, &runs, Side::Ours, options.quiet).await?;
        if python.len() != ours.len() {
            bail!("{} cases went through Python's worker, {} through ours", python.len(), ours.len());
        }
        // The few need all explanations too.
        Ok(Report::new(python, ours, !matches!(options.part, Part::Named(_))))
    }
    .await;
    let stopped = bench.stop().await;
    let report = outcome?;
    stopped?;
    Ok(report)
}
