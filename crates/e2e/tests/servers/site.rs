//! One site: a Prefect server of some kind, perhaps behind a proxy, our worker as a process of this machine, and
//! our runtime in containers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::programs::Programs;
use e2e::stack::remove_leftovers;
use e2e::{containers, runs};
use prefect_api::deployment::{ConcurrencyOptions, DeploymentSettings, NewDeployment};
use prefect_api::flow_run::FlowRun;
use prefect_api::state::{NewState, StateType};
use prefect_client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::docker::{Engine, Image};
use testkit::process::{Command, Process};

/// How long a run may take to get somewhere.
const RUN: Duration = Duration::from_mins(3);
const STOP: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);
const POOL: &str = "pool";

/// The engine with a network and an image of our runtime, before there is a server.
pub(crate) struct Ground {
    engine: Arc<Engine>,
    network: String,
    image: String,
    programs: Programs,
    /// The address of this machine that containers can reach.
    pub(crate) host: IpAddr,
}

impl Ground {
    pub(crate) async fn prepare(stem: &str) -> Result<Self> {
        let engine = Arc::new(Engine::connect().await?);
        let programs = Programs::find()?;
        let network = engine.name(stem);
        engine.create_network(&network).await?;
        let host = engine.gateway(&network).await?;
        let image = format!("ferryman/probe:{network}");
        let runtime = Image::scratch()
            .file("/usr/local/bin/prefect", programs.path("ferryman-probe")?)
            .bytes("/etc/passwd", "probe:x:65532:65532::/tmp:/sbin/nologin\n", 0o644)
            .dir("/tmp", 0o1777)
            .env("PATH", "/usr/local/bin")
            .env("HOME", "/tmp")
            .user("65532:65532");
        engine.build_image(&image, runtime).await?;
        Ok(Self { engine, network, image, programs, host })
    }
}

/// A site at work.
pub(crate) struct Site {
    ground: Ground,
    /// What the test itself talks to.
    pub(crate) prefect: Client,
    worker: Process,
    _files: TempDir,
}

impl Site {
    /// Starts the worker with `env` and makes the deployment, whose limit is one run, with further job variables.
    /// `direct` are the settings of the test's own client.
    pub(crate) async fn open(
        ground: Ground,
        env: &[(String, String)],
        direct: &[(String, String)],
        job_variables: Value,
    ) -> Result<Self> {
        Self::open_with(&[], ground, env, direct, job_variables).await
    }

    /// The same with further arguments of the worker.
    pub(crate) async fn open_with(
        arguments: &[&str],
        ground: Ground,
        env: &[(String, String)],
        direct: &[(String, String)],
        job_variables: Value,
    ) -> Result<Self> {
        let api_url = direct.iter().find(|(name, _)| name == "PREFECT_API_URL").context("no API")?;
        let prefect = runs::client(&api_url.1, direct)?;
        let files = TempDir::new()?;
        let mut worker = Command::new(ground.programs.path("prefect-worker")?)
            .args(["start", "--type", "docker", "--pool", POOL])
            .args(arguments.iter().copied())
            .envs(env.iter().cloned())
            .env("PREFECT_WORKER_QUERY_SECONDS", "1")
            .current_dir(files.path())
            .log_to(files.path().join("worker.log"))
            .spawn()?;
        worker.wait_for_log("worker started", RUN).await?;
        let flow_id = prefect.create_flow("probe").await?.id;
        let Value::Object(more) = job_variables else { bail!("job variables are an object") };
        let Value::Object(mut job_variables) = json!({
            "image": ground.image, "image_pull_policy": "Never", "networks": [ground.network],
        }) else {
            bail!("an object is an object")
        };
        job_variables.extend(more);
        let settings = DeploymentSettings {
            work_pool_name: Some(POOL.to_owned()),
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            concurrency_limit: Some(1),
            concurrency_options: Some(ConcurrencyOptions {
                collision_strategy: "CANCEL_NEW".to_owned(),
                grace_period_seconds: None,
            }),
            entrypoint: Some("probe".to_owned()),
            job_variables,
            ..DeploymentSettings::default()
        };
        let deployment =
            NewDeployment { name: "main".to_owned(), flow_id, settings, enforce_parameter_schema: false };
        prefect.create_deployment(&deployment).await?;
        Ok(Self { ground, prefect, worker, _files: files })
    }

    pub(crate) fn worker_log(&self) -> String {
        self.worker.log()
    }

    pub(crate) fn worker(&mut self) -> &mut Process {
        &mut self.worker
    }

    /// All that a run can come to: what [`Self::run_without_failures`] does, and a run whose container is killed.
    pub(crate) async fn run_everything(&self) -> Result<()> {
        self.run_without_failures().await?;
        let outcome = self.killed().await;
        outcome.with_context(|| format!("the worker says:\n{}", self.worker.log()))
    }

    /// A run that waits takes the only slot, a second one is turned away, the first is cancelled, and a third
    /// completes with all that the UI shows.
    pub(crate) async fn run_without_failures(&self) -> Result<()> {
        let outcome = self.cancelled_and_completed().await;
        outcome.with_context(|| format!("the worker says:\n{}", self.worker.log()))
    }

    async fn cancelled_and_completed(&self) -> Result<()> {
        let waiting = self.trigger(true).await?;
        self.until_waiting(&waiting).await?;
        let second = self.trigger(false).await?;
        self.ended(&second, StateType::Cancelled).await.context("the limit does not hold")?;
        ensure!(self.containers(&second).await?.is_empty(), "a run that was turned away has a container");
        self.cancel(&waiting).await?;
        let completed = self.trigger(false).await?;
        self.ended(&completed, StateType::Completed).await?;
        self.shows(&completed).await
    }

    async fn killed(&self) -> Result<()> {
        let killed = self.trigger(true).await?;
        self.until_waiting(&killed).await?;
        let ids = self.containers(&killed).await?;
        containers::kill(self.ground.engine.api(), ids.first().context("no container")?).await?;
        let ended = self.ended(&killed, StateType::Crashed).await?;
        let message = ended.state.and_then(|state| state.message).unwrap_or_default();
        ensure!(message.contains("137"), "{message}");
        Ok(())
    }

    /// Cancels a run as the UI does; its container ends by itself, with 0.
    pub(crate) async fn cancel(&self, run: &FlowRun) -> Result<()> {
        let cancelling = NewState::new(StateType::Cancelling);
        self.prefect.set_flow_run_state(run.id, &cancelling, false).await?;
        self.ended(run, StateType::Cancelled).await?;
        let ids = self.containers(run).await?;
        let code = self.ground.engine.wait(ids.first().context("no container")?, RUN).await?;
        ensure!(code == 0, "the cancelled container ended with {code}");
        Ok(())
    }

    pub(crate) async fn trigger(&self, linger: bool) -> Result<FlowRun> {
        runs::trigger(&self.prefect, "probe", "main", json!({"linger": linger})).await
    }

    /// Waits until the flow of a run is inside its task.
    pub(crate) async fn until_waiting(&self, run: &FlowRun) -> Result<()> {
        let filter = json!({"flow_runs": {"id": {"any_": [run.id]}}});
        let running = async {
            loop {
                let tasks = self.prefect.filter_task_runs(&filter).await?;
                if tasks.iter().any(|task| task.state_type == Some(StateType::Running)) {
                    return anyhow::Ok(());
                }
                let run = self.prefect.read_flow_run(run.id).await?;
                if run.state_type.is_some_and(StateType::is_final) {
                    bail!("{}", runs::explain(&self.prefect, &run).await);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(RUN, running).await.context("the run never reached its task")?
    }

    pub(crate) async fn ended(&self, run: &FlowRun, as_state: StateType) -> Result<FlowRun> {
        let ended = runs::wait(&self.prefect, run.id, RUN, |_| {}).await?;
        if ended.state_type != Some(as_state) {
            bail!("not {as_state:?}: {}", runs::explain(&self.prefect, &ended).await);
        }
        Ok(ended)
    }

    async fn containers(&self, run: &FlowRun) -> Result<Vec<String>> {
        containers::of_run(self.ground.engine.api(), run.id).await
    }

    /// What the UI shows of a completed run: who ran it and where, its log, tasks, artifacts and events.
    async fn shows(&self, run: &FlowRun) -> Result<()> {
        let ids = self.containers(run).await?;
        // A quick run may end before its labels are taken: nothing waits for them.
        self.eventually("the container and the worker of the run", async || {
            let run = self.prefect.read_flow_run(run.id).await?;
            let pid = run.infrastructure_pid.as_deref().and_then(|pid| pid.rsplit_once(':'));
            let is_ours = pid.is_some_and(|(_, id)| ids.first().is_some_and(|first| first == id));
            Ok(is_ours && run.labels.get("prefect.worker.type") == Some(&json!("docker")))
        })
        .await?;
        self.eventually("lines of worker, flow and task", async || {
            let log = runs::logs(&self.prefect, run.id).await?;
            let wanted = ["counted", "Finished in state Completed()", "submitting flow run"];
            Ok(wanted.iter().all(|text| log.iter().any(|line| line.contains(text))))
        })
        .await?;
        self.eventually("a graph of a task and a subflow", async || {
            let graph = self.prefect.read_graph(run.id).await?;
            let nodes = graph["nodes"].as_array().cloned().unwrap_or_default();
            let done = nodes.iter().filter(|node| node[1]["state_type"] == "COMPLETED");
            let mut kinds: Vec<_> = done.filter_map(|node| node[1]["kind"].as_str()).collect();
            kinds.sort_unstable();
            Ok(kinds == ["flow-run", "task-run"])
        })
        .await?;
        let filter = json!({"artifacts": {"flow_run_id": {"any_": [run.id]}}});
        self.eventually("two artifacts", async || {
            Ok(self.prefect.filter_artifacts(&filter).await?.len() == 2)
        })
        .await?;
        self.eventually("the worker's events", async || {
            let names = self.events_about(run).await?;
            let wanted = ["prefect.worker.submitted-flow-run", "prefect.worker.executed-flow-run"];
            let containers = ["prefect.docker.container.created", "prefect.docker.container.exited"];
            Ok(wanted.iter().chain(&containers).all(|name| names.contains(&(*name).to_owned())))
        })
        .await
    }

    async fn events_about(&self, run: &FlowRun) -> Result<Vec<String>> {
        let id = format!("prefect.flow-run.{}", run.id);
        let filter = json!({"filter": {"related": {"id": [id]}}, "limit": 50});
        let page = self.prefect.post_json("events/filter", &filter).await?;
        let events = page["events"].as_array().cloned().unwrap_or_default();
        Ok(events.iter().filter_map(|event| event["event"].as_str().map(str::to_owned)).collect())
    }

    /// Asks until the answer is yes: the server records some things a moment after they came.
    async fn eventually(&self, what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let holding = async {
            while !holds().await? {
                tokio::time::sleep(POLL).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(RUN, holding).await.with_context(|| format!("the server never showed {what}"))?
    }

    /// Stops the worker and removes what was made.
    pub(crate) async fn close(self) -> Result<()> {
        self.worker.stop(STOP).await?;
        remove_leftovers(&self.ground.engine, &self.ground.network).await
    }
}
