//! Many short runs at once on one worker: how long they take, what they cost, and whether each runs once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt as _;
use futures_util::stream::{self, TryStreamExt as _};
use prefect_api::flow_run::FlowRun;
use prefect_api::state::StateType;
use serde_json::json;
use testkit::docker::Engine;
use testkit::prefect::Database;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Side, Site, WARM_UP, Worker, remove_containers};
use crate::containers::RUN_LABEL;
use crate::measure::{Bench, Figure};
use crate::puppet::Behaviour;

/// Runs, unless another number is asked for.
const RUNS: usize = 500;
/// Runs at a time.
const LIMIT: u32 = 50;
/// How long a run works.
const WORK: Duration = Duration::from_secs(1);
/// Runs that are created at a time.
const CREATORS: usize = 4;
/// When nothing has ended for so long, nothing will.
const STANDSTILL: Duration = Duration::from_mins(2);
/// Runs that the server tells of in one answer.
const PAGE: usize = 200;

/// How a burst went.
struct Burst {
    seconds: f64,
    requests: f64,
    lost: f64,
    double: f64,
}

pub(in crate::measure) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    // As facilities have it. On SQLite most writes at a time are refused, and the waits between tries are measured.
    let site = Site::start(bench, Database::Postgres).await?;
    let runs = bench.options.runs.unwrap_or(RUNS);
    let mut bursts = Vec::new();
    for side in super::SIDES {
        bursts.push(burst(bench, &site, side, runs).await?);
    }
    site.server.stop().await?;
    let [ours, peer] = bursts.as_slice() else { anyhow::bail!("there are two sides") };
    let figure = |name: &str, of: fn(&Burst) -> f64, unit| {
        Figure::new(&format!("{runs} runs of a second: {name}"), of(ours), of(peer), unit)
    };
    Ok(vec![
        figure("time", |burst| burst.seconds, "s"),
        figure("requests a run", |burst| burst.requests, ""),
        figure("lost", |burst| burst.lost, ""),
        figure("double", |burst| burst.double, ""),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
async fn burst(bench: &Bench, site: &Site, whose: Side, count: usize) -> Result<Burst> {
    let worker = site.worker(bench, whose, Some(LIMIT)).await?;
    sleep(WARM_UP).await;
    let created = Creations::watch(Arc::clone(&bench.engine));
    let (before, started) = (worker.proxy.traffic(), Instant::now());
    let behaviour = Behaviour::completing(WORK);
    let runs: Vec<FlowRun> = stream::iter(0..count)
        .map(|_| site.create_run(worker.deployment, &behaviour))
        .buffered(CREATORS)
        .try_collect()
        .await?;
    let completed = wait_for_end(site, &worker, &runs).await?;
    let seconds = started.elapsed().as_secs_f64();
    let requests = worker.proxy.traffic().since(&before).total() as f64 / count as f64;
    let containers = created.counts();
    let made = |run: &FlowRun| containers.get(&run.id.to_string()).copied().unwrap_or_default();
    let lost = count - completed + runs.iter().filter(|run| made(run) == 0).count();
    let double = runs.iter().filter(|run| made(run) > 1).count();
    worker.stop().await?;
    remove_containers(&bench.engine, &runs).await?;
    Ok(Burst { seconds, requests, lost: lost as f64, double: double as f64 })
}

/// Waits until all runs have ended or none ends any more; gives how many completed.
async fn wait_for_end(site: &Site, worker: &Worker, runs: &[FlowRun]) -> Result<usize> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let (mut ended, mut completed) = (0, 0);
        for some in runs.chunks(PAGE) {
            let ids: Vec<_> = some.iter().map(|run| run.id).collect();
            let filter = json!({"flow_runs": {"id": {"any_": ids}}, "limit": PAGE});
            for run in site.client.filter_flow_runs(&filter).await? {
                ended += usize::from(run.state_type.is_some_and(StateType::is_final));
                completed += usize::from(run.state_type == Some(StateType::Completed));
            }
        }
        worker.usage()?;
        if ended == runs.len() || since.elapsed() > STANDSTILL {
            return Ok(completed);
        }
        if ended != last {
            (last, since) = (ended, Instant::now());
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Counts the containers that are made for each run, by the engine's events.
struct Creations {
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    _task: JoinSet<()>,
}

impl Creations {
    fn watch(engine: Arc<Engine>) -> Self {
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let mut task = JoinSet::new();
        let shared = Arc::clone(&counts);
        task.spawn(async move {
            let filters = HashMap::from([
                ("event".to_owned(), vec!["create".to_owned()]),
                ("label".to_owned(), vec![RUN_LABEL.to_owned()]),
            ]);
            let options = EventsOptionsBuilder::new().filters(&filters).build();
            let mut events = std::pin::pin!(engine.api().events(Some(options)));
            while let Some(Ok(event)) = events.next().await {
                let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
                if let Some(run) = attributes.get(RUN_LABEL) {
                    let mut counts = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    *counts.entry(run.clone()).or_insert(0) += 1;
                }
            }
        });
        Self { counts, _task: task }
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
