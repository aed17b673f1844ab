//! Our engine beside Prefect's own: what a run costs before it does anything, and what tasks cost that do nothing.
//!
//! Both execute runs of deployments of the same flows (`crate::measured`, `peer/flows.py`) as a worker has them executed, by
//! `flow-run execute`, which is all that is measured; workers and containers have figures of their own. Each run talks to
//! the server through a proxy of its own, which counts.

pub(super) mod empty;
mod execution;
pub(super) mod tasks;

use std::time::Duration;

use anyhow::{Context as _, Result};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::id::DeploymentId;
use prefect_client::Client;
use serde_json::json;
use tempfile::TempDir;
use testkit::prefect::{Database, PrefectServer, Rest};
use testkit::process::Command;
use tokio::time::{Instant, sleep};

use super::{Bench, Side};
use crate::programs::project_root;
use crate::runs;

/// A server that uses so small a part of a processor has nothing to do.
const IDLE: f64 = 0.1;
/// How long it is looked at to know that.
const LOOK: Duration = Duration::from_secs(2);
/// How long it may take to come to rest.
const REST: Duration = Duration::from_mins(5);

/// A server, and the directory of what the runs write.
struct Site {
    server: PrefectServer,
    client: Client,
    rest: Rest,
    logs: TempDir,
}

/// What executes the runs of a deployment.
struct Runner<'a> {
    site: &'a Site,
    deployment: DeploymentId,
    /// The id of the run is to be added.
    command: Command,
}

impl Site {
    async fn start(bench: &Bench) -> Result<Self> {
        let server = bench.server(Database::Sqlite).await?;
        Ok(Self {
            client: runs::client(&server.api_url(), &server.client_env())?,
            rest: Rest::new(&server)?,
            logs: tempfile::tempdir().context("failed to make a directory")?,
            server,
        })
    }

    /// Makes a deployment of a flow for an engine.
    async fn runner(&self, bench: &Bench, side: Side, flow: &str) -> Result<Runner<'_>> {
        let (name, program) = match side {
            Side::Ours => ("ours", bench.programs.path("ferryman-measured")?),
            Side::Peer => ("peer", self.server.venv().bin("prefect")),
        };
        let directory = project_root().join("crates/e2e/peer").canonicalize()?;
        let pull = json!({"prefect.deployments.steps.set_working_directory": {"directory": directory}});
        let settings = DeploymentSettings {
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            // Our flows are in the program, and nothing of theirs is anywhere else.
            pull_steps: (side == Side::Peer).then(|| vec![pull]),
            entrypoint: Some(format!("flows.py:{flow}")),
            ..DeploymentSettings::default()
        };
        let flow_id = self.client.create_flow(flow).await?.id;
        let deployment =
            NewDeployment { name: name.to_owned(), flow_id, settings, enforce_parameter_schema: false };
        Ok(Runner {
            site: self,
            deployment: self.client.create_deployment(&deployment).await?.id,
            command: Command::new(program)
                .args(["flow-run", "execute"])
                .envs(self.server.client_env())
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .current_dir(self.logs.path()),
        })
    }

    /// CPU seconds of the server until it has come to rest, which is waited for.
    async fn cpu_at_rest(&self) -> Result<f64> {
        let started = Instant::now();
        let mut last = self.server.usage()?.cpu;
        loop {
            sleep(LOOK).await;
            let now = self.server.usage()?.cpu;
            if now.saturating_sub(last) < LOOK.mul_f64(IDLE) {
                return Ok(now.as_secs_f64());
            }
            anyhow::ensure!(started.elapsed() < REST, "the server does not come to rest");
            last = now;
        }
    }
}
