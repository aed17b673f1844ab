//! From the creation of a run to its claim, and to the start of its container.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use prefect_api::state::StateType;
use testkit::prefect::Database;

use super::{SIDES, Side, Site, Worker, remove_containers, until};
use crate::containers;
use crate::dice::Dice;
use crate::measure::{Bench, Figure, median, percentile};
use crate::puppet::{Behaviour, End};

/// Runs of each worker.
const RUNS: usize = 30;
/// Before each run passes a random part of this: the poll interval of both workers.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a run works, in milliseconds: long enough to be seen.
const WORK: u64 = 1_000;
/// How long a run may take to start.
const STARTED: Duration = Duration::from_mins(2);

pub(in crate::measure) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let site = Site::start(bench, Database::Sqlite).await?;
    let (ours, peer) =
        (site.worker(bench, Side::Ours, None).await?, site.worker(bench, Side::Peer, None).await?);
    tokio::time::sleep(super::WARM_UP).await;
    let mut dice = Dice::new(1);
    let [mut claims, mut starts] = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..RUNS {
        for (index, side) in SIDES.into_iter().enumerate() {
            let offset = dice.within(0..u64::try_from(INTERVAL.as_millis()).unwrap_or(u64::MAX));
            tokio::time::sleep(Duration::from_millis(offset)).await;
            let worker = if side == Side::Ours { &ours } else { &peer };
            let (claim, start) = one(bench, &site, worker).await?;
            for (series, value) in [(claims.get_mut(index), claim), (starts.get_mut(index), start)] {
                series.context("there are two sides")?.push(value);
            }
        }
    }
    ours.stop().await?;
    peer.stop().await?;
    site.server.stop().await?;
    let mut figures = Vec::new();
    for (what, [ours, peer]) in [("creation to claim", claims), ("creation to container start", starts)] {
        figures.push(Figure::new(
            &format!("{what}: median"),
            median(ours.clone()),
            median(peer.clone()),
            "ms",
        ));
        figures.push(Figure::new(&format!("{what}: p95"), percentile(ours, 95), percentile(peer, 95), "ms"));
    }
    Ok(figures)
}

/// Milliseconds from the moment at which a creation returned to the claim and to the start of the container.
/// Server, engine and we read one clock.
async fn one(bench: &Bench, site: &Site, worker: &Worker) -> Result<(f64, f64)> {
    let behaviour =
        Behaviour { reports: false, listens: false, deaf: false, millis: WORK, end: End::Exit, code: 0 };
    let run = site.create_run(worker.deployment, &behaviour).await?;
    let created = Timestamp::now();
    let since = |moment: Timestamp| moment.duration_since(created).as_secs_f64() * 1000.0;
    let started = until("the start of a container", STARTED, async || {
        let found = containers::of_run(bench.engine.api(), run.id).await?;
        let Some(id) = found.first() else { return Ok(None) };
        // One that was found and is gone was not started: a worker makes another.
        let Ok(container) = bench.engine.inspect(id).await else { return Ok(None) };
        let state = container.state;
        let text = state.and_then(|state| state.started_at).unwrap_or_default();
        let started: Timestamp =
            text.parse().with_context(|| format!("the engine tells the time {text:?}"))?;
        // What was never started was started in the year 1.
        Ok((started > created - Duration::from_mins(1)).then_some(started))
    })
    .await?;
    let states = site.client.read_flow_run_states(run.id).await?;
    let pending = states.iter().filter(|state| state.kind == StateType::Pending);
    let claim = pending.map(|state| state.timestamp).min().context("the run was started without a claim")?;
    remove_containers(&bench.engine, &[run]).await?;
    Ok((since(claim), since(started)))
}
