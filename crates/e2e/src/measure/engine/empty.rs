//! A flow that does nothing: what every single run costs.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::json;

use super::Site;
use super::execution::Execution;
use crate::measure::{Bench, Figure, Side, median};
use crate::measured::CPU_BEFORE;
use crate::say;

/// Runs of each engine, unless another number is asked for. One more before them is for warm-up and does not count.
const RUNS: usize = 10;

/// What one run cost.
struct Cost {
    /// Milliseconds from the start of the process.
    to_running: f64,
    to_completed: f64,
    to_end: f64,
    /// CPU milliseconds.
    cpu: f64,
    cpu_before: f64,
    /// MiB.
    memory: f64,
    requests: f64,
    /// Both directions.
    frames: f64,
}

pub(in crate::measure) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let site = Site::start(bench).await?;
    let [ours, peer] = [Side::Ours, Side::Peer].map(|side| site.runner(bench, side, "empty"));
    let (ours, peer) = (ours.await?, peer.await?);
    for (runner, whose) in [(&ours, "our"), (&peer, "Prefect's")] {
        let warm_up = runner.execute(json!({})).await?;
        say(&format!("requests of {whose} engine: {:?}", warm_up.traffic.requests));
    }
    let (mut our_costs, mut peer_costs) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.runs.unwrap_or(RUNS) {
        our_costs.push(cost(&ours.execute(json!({})).await?)?);
        peer_costs.push(cost(&peer.execute(json!({})).await?)?);
    }
    site.server.stop().await?;
    let figure = |name: &str, of: fn(&Cost) -> f64, unit| {
        let [ours, peer] = [&our_costs, &peer_costs].map(|costs| median(costs.iter().map(of).collect()));
        Figure::new(&format!("empty flow: {name}"), ours, peer, unit)
    };
    Ok(vec![
        figure("process start to Running", |cost| cost.to_running, "ms"),
        figure("process start to Completed", |cost| cost.to_completed, "ms"),
        figure("process start to end", |cost| cost.to_end, "ms"),
        figure("CPU", |cost| cost.cpu, "ms"),
        figure("CPU before its first line", |cost| cost.cpu_before, "ms"),
        figure("resident memory", |cost| cost.memory, "MiB"),
        figure("HTTP requests", |cost| cost.requests, ""),
        figure("WebSocket frames", |cost| cost.frames, ""),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn cost(execution: &Execution) -> Result<Cost> {
    let since_start = |moment: Timestamp| 1e3 * moment.duration_since(execution.started).as_secs_f64();
    let traffic = &execution.traffic;
    Ok(Cost {
        to_running: since_start(execution.running),
        to_completed: since_start(execution.completed),
        to_end: since_start(execution.ended),
        cpu: 1e3 * execution.cpu,
        cpu_before: 1e3 * cpu_before(&execution.output)?,
        memory: execution.memory,
        requests: traffic.total() as f64,
        frames: (traffic.frames_sent + traffic.frames_received) as f64,
    })
}

/// CPU seconds before the first line of the flow, as the flow tells them.
fn cpu_before(output: &str) -> Result<f64> {
    let told = output.lines().find_map(|line| line.trim().strip_prefix(CPU_BEFORE));
    let told = told.with_context(|| format!("the flow does not tell its CPU time:\n{output}"))?;
    told.parse().with_context(|| format!("{told:?} is no CPU time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flow_tells_its_cpu_time_between_other_lines() {
        let output = format!("INFO Beginning flow run\n{CPU_BEFORE}1.25\nINFO Finished\n");
        assert!((cpu_before(&output).unwrap() - 1.25).abs() < f64::EPSILON);
        assert!(cpu_before("INFO Finished\n").is_err());
    }
}
