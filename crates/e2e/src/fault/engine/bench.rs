//! The world of the runs: one server that is stopped and frozen, a deployment of the flow, and what the flow refers to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::flow_run::NewDeploymentRun;
use prefect_api::id::{DeploymentId, FlowRunId};
use prefect_client::Client;
use secrecy::SecretString;
use serde_json::json;
use testkit::prefect::{Options, PrefectServer, Rest};
use testkit::process::Command;
use testkit::proxy::FaultyProxy;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::plan::{Strike, Trouble};
use crate::fault::PERSISTENT_LEASES;
use crate::programs::Programs;
use crate::record;
use crate::runs::{self, patiently};
use crate::scenarios::marathon::{BATON, FLOW, NARROW, TRACK, WITNESS};

/// More slots than all runs together can take: nobody waits for one, but each must come back.
const SLOTS: u32 = 200;
/// How long the server may be about to free slots.
const SETTLED: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(2);

pub(super) struct Bench {
    pub(super) client: Client,
    pub(super) rest: Rest,
    /// The server is locked while it is away; how it is reached stays the same.
    server: Mutex<PrefectServer>,
    port: u16,
    client_env: Vec<(String, String)>,
    programs: Programs,
    deployment: DeploymentId,
    tasks: u64,
    /// What the runs' processes say, and what their tasks witness.
    files: PathBuf,
}

impl Bench {
    pub(super) async fn start(programs: Programs, tasks: u64, files: &Path) -> Result<Self> {
        let env = record::PROMPT.into_iter().chain([PERSISTENT_LEASES]);
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let server = PrefectServer::start(Options { env, ..Options::default() }).await?;
        let client = runs::client(&server.api_url(), &server.client_env())?;
        for limit in limits() {
            client.create_limit(&limit, SLOTS, 0.0).await?;
        }
        client.save_secret(BATON, &SecretString::from("handed on")).await?;
        let settings = DeploymentSettings {
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            ..DeploymentSettings::default()
        };
        let flow_id = client.create_flow(FLOW).await?.id;
        let name = "faults".to_owned();
        let new = NewDeployment { name, flow_id, settings, enforce_parameter_schema: false };
        let deployment = client.create_deployment(&new).await?.id;
        Ok(Self {
            rest: Rest::new(&server)?,
            client,
            port: server.port(),
            client_env: server.client_env(),
            server: Mutex::new(server),
            programs,
            deployment,
            tasks,
            files: files.to_owned(),
        })
    }

    /// A new run, claimed as a worker claims it.
    pub(super) async fn run(&self) -> Result<FlowRunId> {
        let new = NewDeploymentRun {
            // All of them alike, so that their records are.
            name: Some(FLOW.to_owned()),
            parameters: [("tasks".to_owned(), self.tasks.into())].into_iter().collect(),
            ..NewDeploymentRun::default()
        };
        let run = patiently(|| self.client.create_deployment_run(self.deployment, &new)).await?.id;
        runs::claim(&self.client, run, "faults:1").await?;
        Ok(run)
    }

    /// A proxy before the server.
    pub(super) async fn line(&self) -> Result<FaultyProxy> {
        FaultyProxy::start(([127, 0, 0, 1], self.port).into()).await
    }

    /// The program that executes a run, which reaches the server by `line` if there is one.
    pub(super) fn program(&self, run: FlowRunId, name: &str, line: Option<&FaultyProxy>) -> Result<Command> {
        let program = Command::new(self.programs.path("ferryman-scenarios")?)
            .args(["flow-run", "execute", &run.to_string()])
            .envs(self.client_env.iter().cloned())
            .env("RUST_LOG", "warn,prefect_flow=debug,prefect_client=debug")
            .env(WITNESS, self.file(name, "witness"))
            .log_to(self.file(name, "log"))
            .current_dir(&self.files);
        Ok(match line {
            Some(line) => program.env("PREFECT_API_URL", format!("http://{}/api", line.addr())),
            None => program,
        })
    }

    /// A file of a run.
    pub(super) fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.files.join(format!("{name}.{kind}"))
    }

    /// Does to the server what a strike says, and undoes it.
    pub(super) async fn strike(&self, strike: Strike) -> Result<()> {
        let lasts = Duration::from_millis(strike.lasts);
        let mut server = self.server.lock().await;
        match strike.trouble {
            Trouble::Frozen => {
                server.freeze()?;
                sleep(lasts).await;
                server.thaw()
            }
            Trouble::Stopped { gently } => {
                if gently {
                    server.shut_down().await?;
                } else {
                    server.kill().await?;
                }
                sleep(lasts).await;
                server.restart().await.context("failed to restart the server")
            }
            // These are a line's.
            Trouble::Unavailable { .. }
            | Trouble::Dropped { .. }
            | Trouble::Swallowed { .. }
            | Trouble::Slow { .. }
            | Trouble::Lost => Ok(()),
        }
    }

    /// How many slots nobody will give back: those that are taken and belong to no lease.
    pub(super) async fn leaked_slots(&self) -> Result<u64> {
        let started = Instant::now();
        loop {
            let mut taken = 0;
            for limit in limits() {
                let found = self.rest.get(&format!("/v2/concurrency_limits/{limit}")).await?;
                taken += found["active_slots"].as_u64().unwrap_or_default();
            }
            let leaked = taken.saturating_sub(self.server.lock().await.leased_slots()?);
            // The server changes the two one after the other.
            if leaked == 0 || started.elapsed() > SETTLED {
                return Ok(leaked);
            }
            sleep(LOOK).await;
        }
    }

    pub(super) async fn server_log(&self) -> PathBuf {
        self.server.lock().await.log_path()
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.server.into_inner().stop().await
    }
}

fn limits() -> [String; 2] {
    [TRACK.to_owned(), format!("tag:{NARROW}")]
}
