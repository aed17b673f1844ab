//! The same flows through both engines.
//!
//! - [`scenario`] holds the scenarios: which flow, and what is done with a run of it.
//! - `bench` is the world that they run in: server, deployments, limits, variables, secrets.
//! - `drive` plays a scenario on one side; what the server holds afterwards is read by [`crate::record`].
//! - `album` keeps pictures of what the UI shows of both.
//! - [`explain`] knows the differences that we stand by.

mod album;
mod bench;
mod drive;
pub mod explain;
mod report;
pub mod scenario;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prefect_api::id::FlowRunId;
use serde_json::Value;

use self::album::Album;
use self::bench::{Bench, Side};
pub use self::report::Report;
use self::scenario::Scenario;
use super::{Options, Part};
use crate::programs::Programs;
use crate::record::Subject;
use crate::say;

/// Scenarios under way at a time: most of their time is waiting.
const CONCURRENT: usize = 3;

/// Compares until the end or until `interrupted` resolves, and leaves nothing behind either way, but pictures of
/// what the UI shows of the runs in the directory `screenshots`, if that is given.
pub async fn run(
    options: &Options,
    screenshots: Option<&Path>,
    interrupted: impl Future<Output = ()>,
) -> Result<Report> {
    let scenarios = options.part.of(scenario::ALL.to_vec())?;
    tokio::select! {
        () = interrupted => Err(anyhow::anyhow!("interrupted")),
        report = compare(&scenarios, options, screenshots) => report,
    }
}

async fn compare(scenarios: &[Scenario], options: &Options, screenshots: Option<&Path>) -> Result<Report> {
    let bench = Arc::new(Bench::start(Programs::find()?, scenarios).await?);
    let pairs: Vec<[Record; 2]> = stream::iter(scenarios)
        .map(|scenario| both(Arc::clone(&bench), *scenario, options.quiet))
        .buffered(CONCURRENT)
        .try_collect()
        .await?;
    let mut report = Report::new();
    for (scenario, [python, ours]) in scenarios.iter().zip(&pairs) {
        report.add(scenario.name, &python.document, &ours.document);
    }
    // The few do not need all explanations.
    report.close(options.part == Part::All);
    if let Some(directory) = screenshots {
        let album = Album::open(directory).await?;
        for (scenario, pair) in scenarios.iter().zip(&pairs) {
            album.add(scenario.name, pair.each_ref().map(|record| bench.page(record.run))).await?;
        }
        album.close().await?;
    }
    let bench = Arc::into_inner(bench).context("a scenario is still under way")?;
    bench.stop().await?;
    Ok(report)
}

/// What the server holds of a run.
struct Record {
    run: FlowRunId,
    document: Value,
}

/// Plays a scenario in Python, then in Rust: they share its concurrency limits.
async fn both(bench: Arc<Bench>, scenario: Scenario, quiet: bool) -> Result<[Record; 2]> {
    let python = play(&bench, &scenario, Side::Python).await?;
    let ours = play(&bench, &scenario, Side::Ours).await?;
    if !quiet {
        say(&format!("{}: both have ended", scenario.name));
    }
    Ok([python, ours])
}

async fn play(bench: &Bench, scenario: &Scenario, side: Side) -> Result<Record> {
    let failed = || format!("failed to play {} in {side}", scenario.name);
    let run = drive::play(bench, scenario, side).await.with_context(failed)?;
    let subject = Subject {
        rest: &bench.rest,
        run,
        words: vec![
            (side.deployment().to_owned(), "<deployment>"),
            (bench.results(side).display().to_string(), "<results>"),
        ],
        limits: scenario.limits,
        deadline: bench.deadline,
    };
    let document = subject.settled().await.with_context(failed)?;
    Ok(Record { run, document })
}
