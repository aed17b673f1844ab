//! The same flows through both engines.
//!
//! - [`scenario`] holds the scenarios: which flow, and what is done with a run of it.
//! - `bench` is the world that they run in: server, deployments, limits, variables, secrets.
//! - `drive` plays a scenario on one side, `record` reads what the server holds afterwards.
//! - [`normal`] takes out of it what differs from run to run: ids, times, durations, random names.
//! - [`explain`] knows the differences that we stand by.

mod bench;
mod drive;
pub mod explain;
pub mod normal;
mod record;
mod report;
pub mod scenario;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use self::bench::{Bench, Side};
pub use self::report::Report;
use self::scenario::Scenario;
use super::{Options, Part};
use crate::programs::Programs;
use crate::say;

/// Scenarios under way at a time: most of their time is waiting.
const CONCURRENT: usize = 3;

/// Compares until the end or until `interrupted` resolves, and leaves nothing behind either way.
pub async fn run(options: &Options, interrupted: impl Future<Output = ()>) -> Result<Report> {
    let scenarios = options.part.of(scenario::ALL.to_vec())?;
    tokio::select! {
        () = interrupted => Err(anyhow::anyhow!("interrupted")),
        report = compare(&scenarios, options) => report,
    }
}

async fn compare(scenarios: &[Scenario], options: &Options) -> Result<Report> {
    let bench = Arc::new(Bench::start(Programs::find()?, scenarios).await?);
    let pairs: Vec<(Value, Value)> = stream::iter(scenarios)
        .map(|scenario| both(Arc::clone(&bench), *scenario, options.quiet))
        .buffered(CONCURRENT)
        .try_collect()
        .await?;
    let mut report = Report::new();
    for (scenario, (python, ours)) in scenarios.iter().zip(&pairs) {
        report.add(scenario.name, python, ours);
    }
    // The few do not need all explanations.
    report.close(options.part == Part::All);
    let bench = Arc::into_inner(bench).context("a scenario is still under way")?;
    bench.stop().await?;
    Ok(report)
}

/// Plays a scenario in Python, then in Rust: they share its concurrency limits.
async fn both(bench: Arc<Bench>, scenario: Scenario, quiet: bool) -> Result<(Value, Value)> {
    let python = play(&bench, &scenario, Side::Python).await?;
    let ours = play(&bench, &scenario, Side::Ours).await?;
    if !quiet {
        say(&format!("{}: both have ended", scenario.name));
    }
    Ok((python, ours))
}

async fn play(bench: &Bench, scenario: &Scenario, side: Side) -> Result<Value> {
    let failed = || format!("failed to play {} in {side}", scenario.name);
    let played = drive::play(bench, scenario, side).await.with_context(failed)?;
    record::settled(bench, &played).await.with_context(failed)
}
