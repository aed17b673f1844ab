//! One execution of a flow run, from the start of its process to its end.

use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use prefect_api::flow_run::NewDeploymentRun;
use prefect_api::id::FlowRunId;
use prefect_api::state::{NewState, State, StateType};
use serde_json::Value;
use testkit::process::{Process, usage_of_tree};
use testkit::proxy::{CountingProxy, Traffic};
use tokio::time::{Instant, sleep};

use super::Runner;
use crate::measure::cpu;
use crate::measure::image_sizes::mebibytes;

/// How long an execution may take.
const DEADLINE: Duration = Duration::from_mins(30);
/// The memory is looked at whenever this part of the time has passed again since the last look: what grows after the last
/// look of all is missed.
const PART: u32 = 50;
/// But not more often than this.
const SHORTEST: Duration = Duration::from_millis(2);

/// How an execution went. The server and we read one clock.
pub(super) struct Execution {
    pub(super) run: FlowRunId,
    /// When the process was started.
    pub(super) started: Timestamp,
    /// When the run became Running, as the server tells it.
    pub(super) running: Timestamp,
    /// When it completed, as the server tells it.
    pub(super) completed: Timestamp,
    /// When the process had ended.
    pub(super) ended: Timestamp,
    /// CPU seconds of all its processes.
    pub(super) cpu: f64,
    /// The highest resident memory of all its processes together, in MiB.
    pub(super) memory: f64,
    pub(super) traffic: Traffic,
    /// What it wrote.
    pub(super) output: String,
}

impl Runner<'_> {
    /// Makes a run with these parameters and has it executed.
    pub(super) async fn execute(&self, parameters: Value) -> Result<Execution> {
        let client = &self.site.client;
        let Value::Object(parameters) = parameters else { bail!("parameters have to be an object") };
        let new = NewDeploymentRun { parameters, ..NewDeploymentRun::default() };
        let run = client.create_deployment_run(self.deployment, &new).await?.id;
        // As a worker does before it starts anything.
        client.set_flow_run_state(run, &NewState::new(StateType::Pending), false).await?;
        let proxy = CountingProxy::start(SocketAddr::from(([127, 0, 0, 1], self.site.server.port()))).await?;
        let command = self
            .command
            .clone()
            .arg(run.to_string())
            .env("PREFECT_API_URL", format!("http://{}/api", proxy.addr()))
            .log_to(self.site.logs.path().join(run.to_string()));
        let (cpu, started) = (cpu::of_children()?, Timestamp::now());
        let mut process = command.spawn()?;
        let (exit, memory) = watch(&mut process).await?;
        let (cpu, ended) = (cpu::of_children()? - cpu, Timestamp::now());
        let states = client.read_flow_run_states(run).await?;
        ensure!(exit.success(), "the engine ended with {exit}:\n{}", process.tail(30));
        let entered = |kind| {
            let state = first(&states, kind);
            state.with_context(|| format!("the run was never {kind:?}:\n{}", process.tail(30)))
        };
        Ok(Execution {
            run,
            started,
            running: entered(StateType::Running)?,
            completed: entered(StateType::Completed)?,
            ended,
            cpu,
            memory: mebibytes(memory),
            traffic: proxy.traffic(),
            output: process.log(),
        })
    }
}

/// When a run entered a state for the first time.
fn first(states: &[State], kind: StateType) -> Option<Timestamp> {
    states.iter().filter(|state| state.kind == kind).map(|state| state.timestamp).min()
}

/// Watches the memory of a process and its descendants until it ends; gives the highest.
async fn watch(process: &mut Process) -> Result<(ExitStatus, u64)> {
    let (pid, started, mut highest) = (process.pid(), Instant::now(), 0);
    let mut end = pin!(process.wait(DEADLINE));
    loop {
        let pause = (started.elapsed() / PART).max(SHORTEST);
        tokio::select! {
            biased;
            status = &mut end => return Ok((status?, highest)),
            () = sleep(pause) => {
                highest = highest.max(usage_of_tree(pid).map_or(0, |usage| usage.rss_peak));
            }
        }
    }
}
