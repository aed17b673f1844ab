//! An empty flow, from the start of its process to its end: what every single run costs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::flow_run::NewDeploymentRun;
use prefect_api::id::DeploymentId;
use prefect_api::state::StateType;
use prefect_client::Client;
use serde_json::json;
use testkit::prefect::PrefectServer;
use testkit::process::Command;

use super::{Bench, Figure, cpu, median};
use crate::runs;

/// Runs of each engine; the first is warm-up and does not count.
const RUNS: usize = 6;

const PYTHON_FLOW: &str = "from prefect import flow\n\n\n@flow\ndef empty():\n    pass\n";

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let server = bench.server().await?;
    let client = runs::client(&server.api_url(), &server.client_env())?;
    let ours = Command::new(bench.programs.path("ferryman-empty-flow")?).args(["flow-run", "execute"]);
    let ours = series(&client, &server, ours, "empty", None).await.context("failed to run our flow")?;

    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("flow.py"), PYTHON_FLOW)?;
    let peer = Command::new(server.venv().bin("prefect")).args(["flow-run", "execute"]);
    let folder = folder.path().display().to_string();
    let peer = series(&client, &server, peer, "empty-peer", Some(&folder)).await;
    let peer = peer.context("failed to run the Python flow")?;
    server.stop().await?;
    Ok(vec![
        Figure::new("empty flow: process start to end", ours.0, peer.0, "s"),
        Figure::new("empty flow: CPU", ours.1, peer.1, "s"),
    ])
}

/// Medians of wall and CPU seconds of a program that executes runs of a deployment.
async fn series(
    client: &Client,
    server: &PrefectServer,
    program: Command,
    flow: &str,
    folder: Option<&str>,
) -> Result<(f64, f64)> {
    let deployment = deploy(client, flow, folder).await?;
    let program = program.envs(server.client_env());
    let (mut wall, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let run = client.create_deployment_run(deployment, &NewDeploymentRun::default()).await?;
        let (cpu, started) = (cpu::of_children()?, Instant::now());
        let output =
            program.clone().arg(run.id.to_string()).output(Duration::from_mins(2)).await?.success()?;
        wall.push(started.elapsed().as_secs_f64());
        busy.push(cpu::of_children()? - cpu);
        let ended = client.read_flow_run(run.id).await?;
        ensure!(
            ended.state_type == Some(StateType::Completed),
            "the run is {:?}\n{}",
            ended.state_name,
            output.stderr
        );
    }
    Ok((median(wall.split_off(1)), median(busy.split_off(1))))
}

async fn deploy(client: &Client, flow: &str, folder: Option<&str>) -> Result<DeploymentId> {
    let pull = |folder| json!({"prefect.deployments.steps.set_working_directory": {"directory": folder}});
    let settings = DeploymentSettings {
        parameter_openapi_schema: json!({"type": "object", "properties": {}}),
        pull_steps: folder.map(|folder| vec![pull(folder)]),
        entrypoint: Some("flow.py:empty".to_owned()),
        ..DeploymentSettings::default()
    };
    let flow_id = client.create_flow(flow).await?.id;
    let deployment =
        NewDeployment { name: flow.to_owned(), flow_id, settings, enforce_parameter_schema: true };
    Ok(client.create_deployment(&deployment).await?.id)
}
