//! Whether a worker grows with the runs that it has brought through: the process launcher, a program that does
//! nothing, and a server that only pretends, since a real one would take hours for so many.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testkit::prefect::FakeServer;
use testkit::process::{Command, Process};
use tokio::time::{sleep, timeout};

use crate::measure::image_sizes::mebibytes;
use crate::measure::{Bench, Figure};
use crate::say;

/// Runs before the first look: pools of threads, connections and buffers have their size then.
const WARM_UP: usize = 1_000;
/// Runs in all.
const RUNS: usize = 10_000;
/// How long a thousand runs may take.
const DEADLINE: Duration = Duration::from_mins(10);
/// Looks at the memory, of which the lowest counts, and the pause between them.
const LOOKS: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

pub(in crate::measure) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let state = tempfile::tempdir()?;
    let server = FakeServer::start("memory", "process", json!({"command": "true"})).await?;
    let mut worker = Command::new(bench.programs.path("prefect-worker")?)
        .args(["start", "--type", "process", "--pool", "memory", "--name", "memory", "--limit", "20"])
        .env("PREFECT_API_URL", server.api_url())
        .env("PREFECT_HOME", state.path())
        .env("PREFECT_WORKER_QUERY_SECONDS", "0.05")
        .current_dir(state.path())
        .log_to(state.path().join("worker.log"))
        .spawn()?;
    let mut memory = Vec::new();
    for goal in (WARM_UP..=RUNS).step_by(WARM_UP) {
        server.schedule(WARM_UP);
        timeout(DEADLINE, server.ended(goal))
            .await
            .with_context(|| format!("the worker does not end its runs:\n{}", worker.tail(20)))??;
        memory.push(resident(&mut worker).await?);
        say(&format!("{goal} runs: {:.3} MiB", memory.last().copied().unwrap_or_default()));
    }
    let ends = server.ends();
    ensure!(ends.values().sum::<usize>() == RUNS, "the runs ended as {ends:?}");
    worker.stop(Duration::from_secs(20)).await?;
    let (Some(first), Some(last)) = (memory.first(), memory.last()) else { return Ok(Vec::new()) };
    Ok(vec![
        Figure::ours(&format!("worker, after {WARM_UP} runs: resident memory"), *first, "MiB"),
        Figure::ours(&format!("worker, after {RUNS} runs: resident memory"), *last, "MiB"),
        Figure::ours("worker, growth", last - first, "MiB"),
    ])
}

/// The lowest resident memory of some seconds without work, in MiB.
async fn resident(worker: &mut Process) -> Result<f64> {
    let mut lowest = f64::INFINITY;
    for _ in 0..LOOKS {
        sleep(PAUSE).await;
        let usage = worker.usage().with_context(|| format!("the worker has ended:\n{}", worker.tail(20)))?;
        lowest = lowest.min(mebibytes(usage.rss));
    }
    Ok(lowest)
}
