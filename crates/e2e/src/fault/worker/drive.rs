//! The runs' way through: created, some cancelled, under strikes, until all is settled.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use prefect_api::deployment::{ConcurrencyOptions, DeploymentSettings, NewDeployment};
use prefect_api::flow_run::{FlowRun, NewDeploymentRun};
use prefect_api::id::{DeploymentId, FlowRunId};
use prefect_api::state::{Answer, NewState, State, StateType};
use prefect_api::work_pool::WorkPoolUpdate;
use prefect_client::Client;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use super::parts::{IMAGE, POOL, Parts};
use super::plan::{Cancel, Options, Plan, PlannedRun, Strike};
use super::progress::{self, Counts};
use super::report::{ContainerEnd, Facts, Offender, Report, Struck};
use super::verdict::Evidence;
use crate::puppet::{Shared, Witness};
use crate::{containers, runs, say};

/// Pause between two looks, and between two tries.
const POLL: Duration = Duration::from_millis(300);
/// Pause between two looks at everything.
const LOOK: Duration = Duration::from_secs(1);
/// Runs that the server tells of in one answer.
const PAGE: usize = 200;
/// Runs that are created and not ended at a time: enough that some always wait for a slot.
const OUTSTANDING: usize = 14;
/// The pool's limit, above the deployment's and around the worker's.
const POOL_LIMIT: u32 = 7;
/// Runs of the limited deployment at a time.
const DEPLOYMENT_LIMIT: u32 = 2;
/// When nothing has moved for so long, nothing will.
const STANDSTILL: Duration = Duration::from_mins(3);

/// A run that was created, and whether somebody cancelled it.
#[derive(Debug)]
struct Created {
    id: FlowRunId,
    cancelled: Option<Cancelled>,
}

/// What the server answered to a cancellation.
#[derive(Debug)]
struct Cancelled {
    taken: bool,
    answer: String,
}

struct Drive<'a> {
    parts: &'a Parts,
    client: Client,
    shared: Shared,
    plan: Plan,
    created: Mutex<BTreeMap<usize, Created>>,
    struck: Mutex<Vec<Struck>>,
    counts: watch::Receiver<Counts>,
}

/// The deployments that runs are made of.
struct Deployments {
    free: DeploymentId,
    limited: DeploymentId,
}

pub(super) async fn run(parts: &Parts, options: Options, directory: &Path) -> Result<Report> {
    // Tries and pauses are ours: the moments would drift with those of the client.
    let more = [("PREFECT_CLIENT_MAX_RETRIES".to_owned(), "0".to_owned())];
    let client = runs::client(&parts.api_url, &more)?;
    let (counts, counted) = watch::channel(Counts::default());
    let drive = Drive {
        parts,
        client,
        shared: Shared::inside(directory, parts.server_addr)?,
        plan: Plan::new(options),
        created: Mutex::default(),
        struck: Mutex::default(),
        counts: counted,
    };
    let deployments = drive.deploy().await?;
    let started = Instant::now();
    let work = async {
        tokio::try_join!(drive.create(&deployments), drive.strike())?;
        drive.settle(&deployments).await
    };
    // The moment of a cancellation may never come; then `settle` finds that nothing moves.
    let cancel = async {
        drive.cancel().await?;
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        () = progress::observe(&drive.client, &drive.shared, &counts) => {}
        supervised = parts.supervise_worker() => supervised?,
        cancelled = cancel => cancelled?,
        settled = work => settled?,
    }
    drive.report(options, &deployments, started.elapsed()).await
}

impl Drive<'_> {
    /// Waits for the pool, which the worker makes, and makes deployments in it.
    async fn deploy(&self) -> Result<Deployments> {
        persist(async || self.client.read_work_pool(POOL).await.ok().flatten()).await?;
        let update =
            WorkPoolUpdate { concurrency_limit: Some(Some(POOL_LIMIT)), ..WorkPoolUpdate::default() };
        persist(async || self.client.update_work_pool(POOL, &update).await.ok()).await?;
        Ok(Deployments {
            free: self.deployment("free", None).await?,
            limited: self.deployment("limited", Some(DEPLOYMENT_LIMIT)).await?,
        })
    }

    async fn deployment(&self, name: &str, limit: Option<u32>) -> Result<DeploymentId> {
        let options =
            ConcurrencyOptions { collision_strategy: "ENQUEUE".to_owned(), grace_period_seconds: None };
        let settings = DeploymentSettings {
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            work_pool_name: Some(POOL.to_owned()),
            job_variables: Map::from_iter([("image".to_owned(), Value::from(IMAGE))]),
            concurrency_limit: limit,
            concurrency_options: limit.map(|_| options),
            ..DeploymentSettings::default()
        };
        let flow_id = persist(async || self.client.create_flow("puppet").await.ok()).await?.id;
        let deployment =
            NewDeployment { name: name.to_owned(), flow_id, settings, enforce_parameter_schema: false };
        Ok(persist(async || self.client.create_deployment(&deployment).await.ok()).await?.id)
    }

    /// Creates the runs, a few ahead of those that have ended.
    async fn create(&self, deployments: &Deployments) -> Result<()> {
        let (mut counts, mut wait) = (self.counts.clone(), progress::STANDSTILL);
        for (number, planned) in self.plan.runs.iter().enumerate() {
            let room = counts.wait_for(|counts| number < counts.ends + OUTSTANDING);
            if tokio::time::timeout(wait, room).await.is_err() {
                // A standstill is for `settle` to judge; the strikes want all of the runs.
                wait = Duration::ZERO;
            }
            let id = self.create_run(number, planned, deployments).await?;
            self.created.lock().await.insert(number, Created { id, cancelled: None });
        }
        Ok(())
    }

    async fn create_run(
        &self,
        number: usize,
        planned: &PlannedRun,
        deployments: &Deployments,
    ) -> Result<FlowRunId> {
        let mut variables = planned.behaviour.job_variables(&self.parts.api_url, Some(&self.shared));
        variables.insert("auto_remove".to_owned(), Value::Bool(planned.auto_remove));
        variables.insert("report_exit_state".to_owned(), Value::Bool(planned.exit_counts));
        let deployment = if planned.limited { deployments.limited } else { deployments.free };
        let run = NewDeploymentRun {
            // The answer may be lost: the second try must give the same run.
            idempotency_key: Some(format!("fault-{number}")),
            job_variables: Some(variables),
            ..NewDeploymentRun::default()
        };
        let run = persist(async || self.client.create_deployment_run(deployment, &run).await.ok()).await?;
        Ok(run.id)
    }

    /// Cancels the runs that are to be, each at its moment.
    async fn cancel(&self) -> Result<()> {
        let planned = self.plan.runs.iter().enumerate();
        let cancels = planned.filter_map(|(number, run)| Some((number, run.cancel?)));
        try_join_all(cancels.map(|(number, cancel)| self.cancel_run(number, cancel))).await?;
        Ok(())
    }

    async fn cancel_run(&self, number: usize, cancel: Cancel) -> Result<()> {
        let id = loop {
            if let Some(created) = self.created.lock().await.get(&number) {
                break created.id;
            }
            sleep(POLL).await;
        };
        let moment = match cancel {
            Cancel::Created(moment) => moment,
            Cancel::Started(moment) => {
                while !self.shared.has(&id.to_string()) {
                    // A run that never starts is not waited for for ever: it has ended, or everything has.
                    let run = self.client.read_flow_run(id).await;
                    if run.is_ok_and(|run| run.state_type.is_some_and(StateType::is_final)) {
                        return Ok(());
                    }
                    sleep(POLL).await;
                }
                moment
            }
        };
        sleep(moment).await;
        let state = NewState::new(StateType::Cancelling);
        let answer = persist(async || self.client.set_flow_run_state(id, &state, false).await.ok()).await?;
        // A second try is told of the first, and a run that nobody has claimed is cancelled at once: what counts
        // is the state that it is in now.
        let state = match &answer {
            Answer::Accept(state) => Some(state),
            Answer::Reject { state, .. } | Answer::Abort { state, .. } => state.as_ref(),
            Answer::Wait { .. } => None,
        };
        let taken =
            state.is_some_and(|state| matches!(state.kind, StateType::Cancelling | StateType::Cancelled));
        if let Some(created) = self.created.lock().await.get_mut(&number) {
            created.cancelled = Some(Cancelled { taken, answer: format!("{answer:?}") });
        }
        Ok(())
    }

    /// Strikes, each at its moment. Parts come back on their own, so that several can be away at a time.
    async fn strike(&self) -> Result<()> {
        let mut away = FuturesUnordered::new();
        for strike in &self.plan.strikes {
            let mut moment = std::pin::pin!(async {
                progress::reached(self.counts.clone(), strike.after, strike.count).await;
                sleep(Duration::from_millis(strike.delay)).await;
            });
            loop {
                tokio::select! {
                    Some(back) = away.next() => back?,
                    () = &mut moment => break,
                }
            }
            away.push(self.strike_once(strike));
        }
        away.try_collect().await
    }

    async fn strike_once(&self, strike: &Strike) -> Result<()> {
        let struck = self.parts.strike(strike.clone()).await?;
        say(&format!("{} killed: after {} {}", strike.part, strike.count, strike.after));
        self.struck.lock().await.push(struck);
        Ok(())
    }

    /// Waits until nothing is left to happen, or nothing happens any more.
    async fn settle(&self, deployments: &Deployments) -> Result<()> {
        let (mut last, mut since) = (None, Instant::now());
        loop {
            let runs = self.read_runs().await?;
            let open = runs.values().filter(|run| !run.state_type.is_some_and(StateType::is_final));
            let open: Vec<_> = open.map(|run| (run.id, run.state_name.clone())).collect();
            let containers = self.containers().await?;
            let left = containers.values().flatten().filter(|container| container.status != "exited").count();
            let now = (open, containers.len(), left, self.slots(deployments).await?);
            if now.0.is_empty() && now.2 == 0 && now.3 == 0 && self.removed(&containers).await {
                return Ok(());
            }
            if last.as_ref() != Some(&now) {
                say(&format!("open runs {}, containers {left}, slots {}", now.0.len(), now.3));
                (last, since) = (Some(now), Instant::now());
            } else if since.elapsed() > STANDSTILL {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Whether the containers are gone that the worker was to remove.
    async fn removed(&self, containers: &BTreeMap<String, Vec<ContainerEnd>>) -> bool {
        let created = self.created.lock().await;
        let mut removed = self.plan.runs.iter().enumerate().filter(|(_, planned)| planned.auto_remove);
        removed.all(|(number, _)| {
            created.get(&number).is_none_or(|created| !containers.contains_key(&created.id.to_string()))
        })
    }

    async fn report(&self, options: Options, deployments: &Deployments, took: Duration) -> Result<Report> {
        let (runs, witnesses, containers) =
            (self.read_runs().await?, self.shared.witnesses()?, self.containers().await?);
        let created = self.created.lock().await;
        let strikes = self.struck.lock().await.clone();
        let mut states = BTreeMap::<String, usize>::new();
        let (mut offenders, silent) = (Vec::new(), Witness::default());
        for (&number, Created { id, cancelled }) in created.iter() {
            let planned = self.plan.runs.get(number).context("a run that was not planned")?;
            let state = runs.get(id).and_then(|run| run.state_type);
            *states.entry(state.map_or("gone", StateType::as_str).to_owned()).or_default() += 1;
            let key = id.to_string();
            let evidence = Evidence {
                planned,
                state,
                cancelled: cancelled.as_ref().is_some_and(|cancelled| cancelled.taken),
                witness: witnesses.get(&key).unwrap_or(&silent),
                containers: containers.get(&key).map_or(&[], Vec::as_slice),
                strikes: &strikes,
            };
            let faults = evidence.faults();
            if !faults.is_empty() {
                offenders.push(Offender {
                    run: key,
                    number,
                    faults,
                    command: planned.behaviour.command(),
                    cancelled: cancelled.as_ref().map(|cancelled| cancelled.answer.clone()),
                    auto_remove: planned.auto_remove,
                    limited: planned.limited,
                    states: self.history(*id).await?,
                    witness: evidence.witness.clone(),
                    containers: evidence.containers.to_vec(),
                });
            }
        }
        let slots = self.slots(deployments).await?;
        let gave_up = self.parts.worker.lock().await.gave_up.clone();
        let facts = Facts {
            cancelled: created.values().filter(|run| run.cancelled.is_some()).count(),
            states,
            slots,
            gave_up,
            took,
        };
        Ok(Report::new(options, facts, offenders, strikes))
    }

    async fn read_runs(&self) -> Result<BTreeMap<FlowRunId, FlowRun>> {
        let ids: Vec<FlowRunId> = self.created.lock().await.values().map(|created| created.id).collect();
        let mut runs = BTreeMap::new();
        for some in ids.chunks(PAGE) {
            let filter = json!({"flow_runs": {"id": {"any_": some}}, "limit": PAGE});
            let found = persist(async || self.client.filter_flow_runs(&filter).await.ok()).await?;
            runs.extend(found.into_iter().map(|run| (run.id, run)));
        }
        Ok(runs)
    }

    async fn history(&self, id: FlowRunId) -> Result<Vec<String>> {
        let mut states = persist(async || self.client.read_flow_run_states(id).await.ok()).await?;
        states.sort_by_key(|state| state.timestamp);
        let line = |state: &State| {
            format!("{} {} {}", state.timestamp, state.name(), state.message.as_deref().unwrap_or_default())
        };
        Ok(states.iter().map(line).collect())
    }

    /// Slots of the limited deployment that are taken.
    async fn slots(&self, deployments: &Deployments) -> Result<u32> {
        let deployment =
            persist(async || self.client.read_deployment(deployments.limited).await.ok()).await?;
        Ok(deployment.global_concurrency_limit.map_or(0, |limit| limit.active_slots))
    }

    /// The containers of runs, by run.
    async fn containers(&self) -> Result<BTreeMap<String, Vec<ContainerEnd>>> {
        let engine = &self.parts.engine;
        let labelled =
            persist(async || engine.containers_with(containers::RUN_LABEL, None).await.ok()).await?;
        let mut found = BTreeMap::<String, Vec<ContainerEnd>>::new();
        for id in labelled {
            // One that is being removed just now cannot be inspected any more.
            let Ok(container) = engine.inspect(&id).await else { continue };
            let labels = container.config.and_then(|config| config.labels).unwrap_or_default();
            let state = container.state.unwrap_or_default();
            let end = ContainerEnd {
                id,
                status: state.status.map(|status| status.to_string()).unwrap_or_default(),
                exit_code: state.exit_code,
                started_at: state.started_at.unwrap_or_default(),
                finished_at: state.finished_at.unwrap_or_default(),
            };
            found
                .entry(labels.get(containers::RUN_LABEL).cloned().unwrap_or_default())
                .or_default()
                .push(end);
        }
        Ok(found)
    }
}

/// Tries until there is an answer: parts are away at times. An error when there is none for long.
async fn persist<T>(attempt: impl AsyncFn() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    while started.elapsed() < STANDSTILL {
        if let Some(value) = attempt().await {
            return Ok(value);
        }
        sleep(POLL).await;
    }
    bail!("server or engine gave no answer for {STANDSTILL:?}")
}
