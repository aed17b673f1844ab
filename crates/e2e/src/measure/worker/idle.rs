//! What a worker costs that has nothing to do, and one that watches fifty containers.

use std::time::Duration;

use anyhow::Result;
use prefect_api::flow_run::FlowRun;
use testkit::prefect::Database;

use super::{Side, Site, WARM_UP, Worker, remove_containers, until};
use crate::containers;
use crate::measure::image_sizes::mebibytes;
use crate::measure::{Bench, Figure};
use crate::puppet::{Behaviour, End};

/// How long the workers are watched, unless another time is asked for.
const TIME: Duration = Duration::from_mins(10);
/// Containers of the second part.
const CONTAINERS: usize = 50;
/// How long they may take to start.
const STARTED: Duration = Duration::from_mins(5);

/// What a worker took in a time.
struct Cost {
    memory: f64,
    /// CPU seconds.
    cpu: f64,
    /// Requests a minute.
    requests: f64,
    /// WebSocket frames a minute, both directions.
    frames: f64,
}

pub(in crate::measure) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let site = Site::start(bench, Database::Sqlite).await?;
    let (ours, peer) =
        (site.worker(bench, Side::Ours, None).await?, site.worker(bench, Side::Peer, None).await?);
    tokio::time::sleep(WARM_UP).await;
    let time = bench.options.minutes.unwrap_or(TIME);
    let mut figures = costs("idle", time, &ours, &peer).await?;
    let our_runs = occupy(bench, &site, &ours, time).await?;
    let peer_runs = occupy(bench, &site, &peer, time).await?;
    tokio::time::sleep(WARM_UP).await;
    figures.extend(costs(&format!("{CONTAINERS} containers"), time, &ours, &peer).await?);
    // The workers go first: they would report each container that we take away.
    ours.stop().await?;
    peer.stop().await?;
    remove_containers(&bench.engine, &our_runs).await?;
    remove_containers(&bench.engine, &peer_runs).await?;
    site.server.stop().await?;
    Ok(figures)
}

/// The costs of both, in the same time.
async fn costs(what: &str, time: Duration, ours: &Worker, peer: &Worker) -> Result<Vec<Figure>> {
    let (ours, peer) = tokio::try_join!(cost(ours, time), cost(peer, time))?;
    let minutes = time.as_secs() / 60;
    let figure = |name: &str, of: fn(&Cost) -> f64, unit| {
        Figure::new(&format!("worker, {what}: {name}"), of(&ours), of(&peer), unit)
    };
    Ok(vec![
        figure("resident memory", |cost| cost.memory, "MiB"),
        figure(&format!("CPU of {minutes} min"), |cost| cost.cpu, "s"),
        figure("HTTP requests a minute", |cost| cost.requests, ""),
        figure("WebSocket frames a minute", |cost| cost.frames, ""),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
async fn cost(worker: &Worker, time: Duration) -> Result<Cost> {
    let (before, traffic) = (worker.usage()?, worker.proxy.traffic());
    tokio::time::sleep(time).await;
    let (after, traffic) = (worker.usage()?, worker.proxy.traffic().since(&traffic));
    let minutes = time.as_secs_f64() / 60.0;
    Ok(Cost {
        memory: mebibytes(after.rss),
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
        requests: traffic.total() as f64 / minutes,
        frames: (traffic.frames_sent + traffic.frames_received) as f64 / minutes,
    })
}

/// Starts runs that do nothing for longer than it is measured, and waits for their containers.
async fn occupy(bench: &Bench, site: &Site, worker: &Worker, time: Duration) -> Result<Vec<FlowRun>> {
    let millis = u64::try_from((time + 2 * STARTED + 4 * WARM_UP).as_millis()).unwrap_or(u64::MAX);
    let behaviour = Behaviour { reports: true, listens: false, deaf: false, millis, end: End::Exit, code: 0 };
    let mut runs = Vec::new();
    for _ in 0..CONTAINERS {
        runs.push(site.create_run(worker.deployment, &behaviour).await?);
    }
    until("the start of all containers", STARTED, async || {
        for run in &runs {
            let running = site.client.read_flow_run(run.id).await?.start_time.is_some();
            if !running || containers::of_run(bench.engine.api(), run.id).await?.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    Ok(runs)
}
