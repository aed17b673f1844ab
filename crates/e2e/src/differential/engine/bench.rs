//! The world that the scenarios run in: one server, a deployment of each flow for each side, and what flows refer to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::id::{DeploymentId, FlowRunId};
use prefect_client::Client;
use secrecy::SecretString;
use serde_json::json;
use tempfile::TempDir;
use testkit::prefect::{Options, PrefectServer, Rest};
use testkit::process::Command;

use super::scenario::Scenario;
use crate::programs::{Programs, project_root};
use crate::record::PROMPT;
use crate::runs::{self, patiently};

/// The flow that a scenario calls by its deployment, and its file.
pub(super) const CALLED: (&str, &str) = ("called", "runs.py");

/// Makes the concurrency limits, as somebody does in the UI.
const LIMITS: [(&str, u32, f64); 3] =
    [("tag:scarce", 1, 0.0), ("tape-drives", 1, 0.0), ("catalogue", 5, 1.0)];

/// Whose engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Python,
    Ours,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Python => "Python",
            Self::Ours => "Rust",
        })
    }
}

impl Side {
    /// The name of its deployments.
    pub(super) const fn deployment(self) -> &'static str {
        match self {
            Self::Python => "differential-python",
            Self::Ours => "differential-ours",
        }
    }
}

pub(super) struct Bench {
    pub(super) client: Client,
    pub(super) rest: Rest,
    pub(super) deadline: Duration,
    server: PrefectServer,
    programs: Programs,
    deployments: BTreeMap<(Side, &'static str), DeploymentId>,
    /// Marks of flows that are at work, and the programs' output.
    files: TempDir,
}

impl Bench {
    pub(super) async fn start(programs: Programs, scenarios: &[Scenario]) -> Result<Self> {
        let env = PROMPT.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let server = PrefectServer::start(Options { env, ..Options::default() }).await?;
        let client = runs::client(&server.api_url(), &server.client_env())?;
        for (name, limit, decay) in LIMITS {
            client.create_limit(name, limit, decay).await?;
        }
        client.set_variable("text", &json!("from a variable")).await?;
        client.set_variable("object", &json!({"size": 64})).await?;
        client.save_secret("password", &SecretString::from("not to be told")).await?;
        let mut bench = Self {
            rest: Rest::new(&server)?,
            client,
            deadline: Duration::from_mins(5),
            server,
            programs,
            deployments: BTreeMap::new(),
            files: tempfile::tempdir().context("failed to make a directory")?,
        };
        for side in [Side::Python, Side::Ours] {
            for (flow, file) in scenarios.iter().map(|it| (it.flow, it.file)).chain([CALLED]) {
                if !bench.deployments.contains_key(&(side, flow)) {
                    let deployment = bench.deploy(side, flow, file).await?;
                    bench.deployments.insert((side, flow), deployment);
                }
            }
        }
        Ok(bench)
    }

    async fn deploy(&self, side: Side, flow: &str, file: &str) -> Result<DeploymentId> {
        let directory = project_root().join("crates/e2e/differential/engine").canonicalize()?;
        let pull = json!({"prefect.deployments.steps.set_working_directory": {"directory": directory}});
        let settings = DeploymentSettings {
            entrypoint: Some(format!("{file}:{}", flow.replace('-', "_"))),
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            pull_steps: Some(vec![pull]),
            tags: vec!["deployed".to_owned()],
            ..DeploymentSettings::default()
        };
        let flow_id = patiently(|| self.client.create_flow(flow)).await?.id;
        let name = side.deployment().to_owned();
        let new = NewDeployment { name, flow_id, settings, enforce_parameter_schema: false };
        Ok(patiently(|| self.client.create_deployment(&new)).await?.id)
    }

    /// The deployment of a flow.
    pub(super) fn deployment(&self, side: Side, flow: &str) -> Result<DeploymentId> {
        let mut found = self.deployments.iter().filter(|((of, name), _)| *of == side && *name == flow);
        found.next().map(|(_, id)| *id).with_context(|| format!("there is no deployment of {flow}"))
    }

    /// A file of this name, for this side.
    pub(super) fn file(&self, side: Side, name: &str) -> PathBuf {
        self.files.path().join(format!("{side}-{name}"))
    }

    /// Where the results of this side are kept.
    pub(super) fn results(&self, side: Side) -> PathBuf {
        self.file(side, "results")
    }

    /// What executes flow runs on this side; its arguments are to be added.
    pub(super) fn program(&self, side: Side) -> Result<Command> {
        let program = match side {
            Side::Python => self.server.venv().bin("prefect"),
            Side::Ours => self.programs.path("ferryman-scenarios")?,
        };
        let (flow, _) = CALLED;
        Ok(Command::new(program)
            .args(["flow-run", "execute"])
            .envs(self.server.client_env())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PREFECT_LOGGING_LEVEL", "DEBUG")
            .env("PREFECT_RUNNER_POLL_FREQUENCY", "2")
            .env("PREFECT_LOCAL_STORAGE_PATH", self.results(side))
            .env("SCENARIO_CALLED", format!("{flow}/{}", side.deployment()))
            .current_dir(self.files.path()))
    }

    /// The page of a run in the UI.
    pub(super) fn page(&self, run: FlowRunId) -> String {
        runs::page(&self.server.api_url(), run)
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.server.stop().await
    }
}
