//! One scenario on one side: what a worker and the UI do with a run, and the process that executes it.

use std::path::Path;

use anyhow::{Result, bail};
use prefect_api::flow_run::NewDeploymentRun;
use prefect_api::id::FlowRunId;
use prefect_api::state::StateType;
use serde_json::{Value, json};
use testkit::process::Process;
use tokio::time::{Duration, Instant, sleep};

use super::bench::{Bench, CALLED, Side};
use super::scenario::{Play, Scenario};
use crate::runs::{self, patiently};

const POLL: Duration = Duration::from_millis(200);
/// Both engines send what they have to tell within this, before they are killed.
const TOLD: Duration = Duration::from_secs(5);

/// Plays a scenario to its end; gives its run.
pub(super) async fn play(bench: &Bench, scenario: &Scenario, side: Side) -> Result<FlowRunId> {
    let Value::Object(parameters) = serde_json::from_str(scenario.parameters)? else {
        bail!("the parameters are no object");
    };
    let new = NewDeploymentRun {
        name: Some(scenario.name.to_owned()),
        parameters,
        tags: scenario.tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..NewDeploymentRun::default()
    };
    let deployment = bench.deployment(side, scenario.flow)?;
    let run = patiently(|| bench.client.create_deployment_run(deployment, &new)).await?.id;
    let drive = Drive { bench, scenario, side, run };
    drive.play().await?;
    Ok(run)
}

struct Drive<'a> {
    bench: &'a Bench,
    scenario: &'a Scenario,
    side: Side,
    run: FlowRunId,
}

impl Drive<'_> {
    async fn play(&self) -> Result<()> {
        self.claim(self.run).await?;
        match self.scenario.play {
            Play::Once => self.execute(self.run).await,
            Play::TriedAgain => {
                self.execute(self.run).await?;
                let state =
                    json!({"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"});
                self.set_state(self.run, &state).await?;
                self.claim(self.run).await?;
                self.execute(self.run).await
            }
            Play::CancelledBefore => {
                self.set_state(self.run, &json!({"type": "CANCELLING"})).await?;
                self.execute(self.run).await
            }
            Play::Cancelled => {
                let mut process = self.start(self.run)?;
                self.at_work(&mut process).await?;
                self.set_state(self.run, &json!({"type": "CANCELLING"})).await?;
                self.end(process).await
            }
            Play::Resumed => {
                let process = self.start(self.run)?;
                self.until(StateType::Paused).await?;
                self.resume(&json!({})).await?;
                self.end(process).await
            }
            Play::ResumedWith(input) => {
                let process = self.start(self.run)?;
                self.until(StateType::Paused).await?;
                self.form().await?;
                let input: Value = serde_json::from_str(input)?;
                self.resume(&json!({"run_input": input})).await?;
                self.end(process).await
            }
            Play::ResumedLater => {
                self.execute(self.run).await?;
                self.resume(&json!({})).await?;
                self.claim(self.run).await?;
                self.execute(self.run).await
            }
            Play::Calling => {
                let process = self.start(self.run)?;
                let called = self.called().await?;
                self.claim(called).await?;
                self.execute(called).await?;
                self.end(process).await
            }
            Play::Killed => {
                let mut process = self.start(self.run)?;
                self.at_work(&mut process).await?;
                sleep(TOLD).await;
                process.kill();
                process.wait(self.bench.deadline).await?;
                Ok(())
            }
        }
    }

    async fn claim(&self, run: FlowRunId) -> Result<()> {
        runs::claim(&self.bench.client, run, "differential:1").await
    }

    async fn set_state(&self, run: FlowRunId, state: &Value) -> Result<()> {
        let answer =
            self.bench.rest.post(&format!("/flow_runs/{run}/set_state"), &json!({"state": state})).await?;
        if answer["status"] != "ACCEPT" {
            bail!("the server does not take {state}: {answer}");
        }
        Ok(())
    }

    async fn resume(&self, with: &Value) -> Result<()> {
        let answer = self.bench.rest.post(&format!("/flow_runs/{}/resume", self.run), with).await?;
        if answer["status"] != "ACCEPT" {
            bail!("the server does not resume: {answer}");
        }
        Ok(())
    }

    fn start(&self, run: FlowRunId) -> Result<Process> {
        let file = |name: &str| self.bench.file(self.side, &format!("{}-{name}", self.scenario.name));
        self.bench
            .program(self.side)?
            .arg(run.to_string())
            .env("SCENARIO_MARK", file("mark"))
            .log_to(file("log"))
            .spawn()
    }

    async fn execute(&self, run: FlowRunId) -> Result<()> {
        self.end(self.start(run)?).await
    }

    async fn end(&self, mut process: Process) -> Result<()> {
        process.wait(self.bench.deadline).await?;
        Ok(())
    }

    /// Waits until the flow says that it is at work.
    async fn at_work(&self, process: &mut Process) -> Result<()> {
        let mark = self.bench.file(self.side, &format!("{}-mark", self.scenario.name));
        let started = Instant::now();
        while !Path::new(&mark).exists() {
            if !process.is_running() || started.elapsed() > self.bench.deadline {
                bail!("the flow did not come to work:\n{}", process.tail(30));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn until(&self, kind: StateType) -> Result<()> {
        let started = Instant::now();
        while patiently(|| self.bench.client.read_flow_run(self.run)).await?.state_type != Some(kind) {
            if started.elapsed() > self.bench.deadline {
                bail!("the run did not become {kind:?}");
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until the form of a pause is there.
    async fn form(&self) -> Result<()> {
        let rest = &self.bench.rest;
        let run = rest.get(&format!("/flow_runs/{}", self.run)).await?;
        let key = run["state"]["state_details"]["run_input_keyset"]["schema"].as_str().unwrap_or_default();
        let started = Instant::now();
        while let Err(error) = rest.get(&format!("/flow_runs/{}/input/{key}", self.run)).await {
            if started.elapsed() > self.bench.deadline {
                return Err(error.context("the pause shows no form"));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// The run that the flow makes of the deployment that it calls.
    async fn called(&self) -> Result<FlowRunId> {
        let (flow, _) = CALLED;
        let filter =
            json!({"flow_runs": {"deployment_id": {"any_": [self.bench.deployment(self.side, flow)?]}}});
        let started = Instant::now();
        loop {
            if let Some(run) = patiently(|| self.bench.client.filter_flow_runs(&filter)).await?.first() {
                return Ok(run.id);
            }
            if started.elapsed() > self.bench.deadline {
                bail!("the flow did not call the deployment");
            }
            sleep(POLL).await;
        }
    }
}
