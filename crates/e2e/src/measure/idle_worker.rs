//! Memory and CPU of a worker that has nothing to do.

use std::time::Duration;

use anyhow::{Context as _, Result};
use testkit::process::{Command, Process};

use super::image_sizes::mebibytes;
use super::{Bench, Figure};

/// How long each worker idles; the CPU figure is for this long.
const IDLE: Duration = Duration::from_mins(1);

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let server = bench.server().await?;
    let ours = Command::new(bench.programs.path("prefect-worker")?)
        .args(["start", "--type", "docker", "--pool", "idle-ours", "--name", "idle"])
        .envs(server.client_env())
        .spawn()?;
    let (our_memory, our_cpu) = idle(ours).await.context("failed to measure our worker")?;
    let peer = server.start_python_worker("idle-peer", &["--name", "idle"], &[])?;
    let (peer_memory, peer_cpu) = idle(peer).await.context("failed to measure the Python worker")?;
    server.stop().await?;
    Ok(vec![
        Figure::new("worker, idle: resident memory", our_memory, peer_memory, "MiB"),
        Figure::new("worker, idle for a minute: CPU", our_cpu, peer_cpu, "s"),
    ])
}

/// Resident memory in MiB after a minute of idling, and the CPU seconds of that minute: a warm-up of 20 s, in
/// which Python is still importing, counts for neither.
async fn idle(mut worker: Process) -> Result<(f64, f64)> {
    tokio::time::sleep(Duration::from_secs(20)).await;
    let before = worker.usage().context("the worker has ended")?;
    tokio::time::sleep(IDLE).await;
    let after = worker.usage().with_context(|| format!("the worker has ended:\n{}", worker.tail(20)))?;
    anyhow::ensure!(worker.is_running(), "the worker has ended:\n{}", worker.tail(20));
    worker.stop(Duration::from_secs(20)).await?;
    Ok((mebibytes(after.rss), after.cpu.saturating_sub(before.cpu).as_secs_f64()))
}
