//! All cases through one worker.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bollard::models::ContainerSummaryStateEnum;
use bollard::query_parameters::ListContainersOptionsBuilder;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prefect_api::flow_run::NewDeploymentRun;
use prefect_api::id::FlowRunId;
use prefect_api::state::StateType;
use serde_json::{Value, json};
use testkit::process::Process;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bench::{Bench, Deployed};
use super::case::Pool;
use super::container::document;
use crate::runs::patiently;
use crate::{containers, say};

/// Runs under way at a time.
const CONCURRENT: usize = 16;
/// How long a case may take from the creation of its run to its container or its end.
const CASE: Duration = Duration::from_mins(3);
/// How often the engine is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often the server is asked, which costs it more.
const ASK: Duration = Duration::from_secs(2);

/// Whose worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Python,
    Ours,
}

/// What came of a case.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A container started.
    Launched(Value),
    /// None did, and the run ended, or is in the same state for minutes.
    Refused {
        state: String,
        message: String,
        /// Containers that were left.
        left: usize,
    },
}

pub(super) type Outcomes = BTreeMap<String, Outcome>;

/// A run whose container is not seen yet.
struct Pending<'a> {
    deployed: &'a Deployed,
    since: Instant,
}

/// A container that stays until its output was looked for.
struct Held {
    case: String,
    pool: Pool,
    run: FlowRunId,
    container: String,
    streams: bool,
}

/// Runs every case through the workers of a side.
pub(super) async fn all(bench: &Bench, cases: &[Deployed], side: Side, quiet: bool) -> Result<Outcomes> {
    let workers = bench.start_workers(side, cases)?;
    let bar = progress(side, cases.len(), quiet);
    let mut drive =
        Drive { bench, side, workers, outcomes: Outcomes::new(), held: Vec::new(), removals: JoinSet::new() };
    drive.cases(cases, &bar).await?;
    drive.look_for_output().await?;
    while let Some(removed) = drive.removals.join_next().await {
        removed??;
    }
    bar.finish_and_clear();
    // Dropping the workers kills them: what they would still do, such as reporting the ends of containers that
    // were removed under them, is not compared.
    Ok(drive.outcomes)
}

struct Drive<'a> {
    bench: &'a Bench,
    side: Side,
    workers: BTreeMap<Pool, Process>,
    outcomes: Outcomes,
    held: Vec<Held>,
    removals: JoinSet<Result<()>>,
}

impl Drive<'_> {
    async fn cases(&mut self, cases: &[Deployed], bar: &ProgressBar) -> Result<()> {
        let mut waiting = cases.iter();
        let mut pending = BTreeMap::new();
        let mut asked: Option<Instant> = None;
        loop {
            while pending.len() < CONCURRENT
                && let Some(deployed) = waiting.next()
            {
                pending.insert(self.trigger(deployed).await?, Pending { deployed, since: Instant::now() });
            }
            if pending.is_empty() {
                return Ok(());
            }
            for (run, container) in self.containers().await? {
                if let Some(Pending { deployed, .. }) = pending.get(&run)
                    && let Some(outcome) = self.look(run, &container, deployed).await?
                {
                    self.outcomes.insert(deployed.case.name.clone(), outcome);
                    pending.remove(&run);
                    bar.inc(1);
                }
            }
            if asked.is_none_or(|asked| asked.elapsed() > ASK) {
                for (case, outcome) in self.ended(&mut pending).await? {
                    self.outcomes.insert(case, outcome);
                    bar.inc(1);
                }
                asked = Some(Instant::now());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn trigger(&self, deployed: &Deployed) -> Result<FlowRunId> {
        let run = NewDeploymentRun {
            name: Some(deployed.run_name.clone()),
            job_variables: (!deployed.case.run.is_empty()).then(|| deployed.case.run.clone()),
            // So that the second of two attempts finds the run of the first.
            idempotency_key: Some(format!("{:?} {}", self.side, deployed.case.name)),
            ..NewDeploymentRun::default()
        };
        let made = patiently(|| self.bench.client.create_deployment_run(deployed.deployment, &run)).await;
        Ok(made.with_context(|| format!("the server refuses the run of {}", deployed.case.name))?.id)
    }

    /// Started containers of flow runs, whosoever.
    async fn containers(&self) -> Result<Vec<(FlowRunId, String)>> {
        let filters = HashMap::from([("label".to_owned(), vec![containers::RUN_LABEL.to_owned()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self.bench.engine.api().list_containers(Some(options)).await?;
        let started = found.into_iter().filter_map(|container| {
            let run = container.labels?.get(containers::RUN_LABEL)?.parse().ok()?;
            let waits = matches!(
                container.state?,
                ContainerSummaryStateEnum::CREATED | ContainerSummaryStateEnum::REMOVING
            );
            (!waits).then_some((run, container.id?))
        });
        Ok(started.collect())
    }

    /// What the engine made of a case. The container is removed, so that names are free again.
    async fn look(&mut self, run: FlowRunId, id: &str, deployed: &Deployed) -> Result<Option<Outcome>> {
        let Some(inspect) = self.bench.engine.inspect_raw(id).await? else { return Ok(None) };
        match deployed.case.streams {
            Some(streams) => self.held.push(Held {
                case: deployed.case.name.clone(),
                pool: deployed.case.pool,
                run,
                container: id.to_owned(),
                streams,
            }),
            None => self.remove(id.to_owned()),
        }
        Ok(Some(Outcome::Launched(document(&inspect, run))))
    }

    /// The cases whose runs have ended without a container that started, or will never end.
    async fn ended(&self, pending: &mut BTreeMap<FlowRunId, Pending<'_>>) -> Result<Vec<(String, Outcome)>> {
        let ids: Vec<FlowRunId> = pending.keys().copied().collect();
        let filter = json!({"flow_runs": {"id": {"any_": ids}}});
        let mut ended = Vec::new();
        for run in patiently(|| self.bench.client.filter_flow_runs(&filter)).await? {
            let Some(Pending { deployed, since }) = pending.get(&run.id) else { continue };
            let state = run.state_name.unwrap_or_default();
            let outcome = if run.state_type.is_some_and(StateType::is_final) {
                let engine = self.bench.engine.api();
                let left = containers::of_run(engine, run.id).await?;
                containers::remove(engine, &left).await;
                Outcome::Refused {
                    state: format!(
                        "{state} ({})",
                        run.state_type.map(|kind| json!(kind)).unwrap_or_default()
                    ),
                    message: run.state.and_then(|state| state.message).unwrap_or_default(),
                    left: left.len(),
                }
            } else if since.elapsed() > CASE {
                let tail = self.workers.get(&deployed.case.pool).map(|worker| worker.tail(40));
                Outcome::Refused {
                    state: format!("still {state}"),
                    message: tail.unwrap_or_default(),
                    left: 0,
                }
            } else {
                continue;
            };
            ended.push((deployed.case.name.clone(), outcome));
            pending.remove(&run.id);
        }
        Ok(ended)
    }

    /// Removes a container meanwhile: it takes the engine a second.
    fn remove(&mut self, id: String) {
        let engine = Arc::clone(&self.bench.engine);
        self.removals.spawn(async move { engine.remove_container(&id).await });
    }

    /// Notes for the containers that stayed whether the worker prints their output.
    async fn look_for_output(&mut self) -> Result<()> {
        let printed = |workers: &BTreeMap<Pool, Process>, held: &Held| {
            let log = workers.get(&held.pool).map(Process::log).unwrap_or_default();
            log.contains(&format!("probe of {}", held.run))
        };
        let started = Instant::now();
        while self.held.iter().any(|held| held.streams && !printed(&self.workers, held))
            && started.elapsed() < CASE
        {
            tokio::time::sleep(POLL).await;
        }
        for held in std::mem::take(&mut self.held) {
            self.remove(held.container.clone());
            if let Some(Outcome::Launched(Value::Object(document))) = self.outcomes.get_mut(&held.case) {
                document.insert("Printed".to_owned(), printed(&self.workers, &held).into());
            }
        }
        Ok(())
    }
}

fn progress(side: Side, cases: usize, quiet: bool) -> ProgressBar {
    let whose = match side {
        Side::Python => "the Python worker",
        Side::Ours => "our worker",
    };
    if quiet || !std::io::stderr().is_terminal() {
        say(&format!("{cases} cases through {whose}"));
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(cases as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg:<18} {wide_bar} {pos}/{len}") {
        bar.set_style(style);
    }
    bar.set_message(whose);
    bar
}
