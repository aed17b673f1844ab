//! Our Docker worker beside Python's, at their default settings: how soon a run is there, what idling costs, and
//! how a burst of runs comes through.
//!
//! Each worker talks to the server through a proxy of its own that counts; the runs do not, so that what is
//! counted is the worker's. Both use the machine's engine.

pub(super) mod burst;
pub(super) mod idle;
pub(super) mod latency;
pub(super) mod memory;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::flow_run::{FlowRun, NewDeploymentRun};
use prefect_api::id::DeploymentId;
use prefect_client::Client;
use serde_json::{Map, Value, json};
use testkit::docker::Engine;
use testkit::prefect::{Database, PrefectServer};
use testkit::process::{Command, Process, Usage};
use testkit::proxy::CountingProxy;
use tokio::time::sleep;

use super::{Bench, SIDES, Side, until};
use crate::puppet::{self, Behaviour};
use crate::{containers, runs};

/// How long a worker may take until it has made its pool.
const READY: Duration = Duration::from_mins(2);
/// How long a worker may take to stop.
const STOP: Duration = Duration::from_secs(20);
/// After its start a worker imports and connects; this long it counts for nothing.
const WARM_UP: Duration = Duration::from_secs(20);

/// A server with the image of the runs, for both workers.
struct Site {
    server: PrefectServer,
    client: Client,
    image: String,
}

impl Site {
    async fn start(bench: &Bench, database: Database) -> Result<Self> {
        let server = bench.server(database).await?;
        let client = runs::client(&server.api_url(), &server.client_env())?;
        let image = format!("{}:1", bench.engine.name("puppet"));
        puppet::build_image(&bench.engine, &bench.programs, &image).await?;
        Ok(Self { server, client, image })
    }

    /// Starts a worker, and a deployment in its pool.
    async fn worker(&self, bench: &Bench, side: Side, limit: Option<u32>) -> Result<Worker> {
        let upstream = SocketAddr::from(([127, 0, 0, 1], self.server.port()));
        let proxy = CountingProxy::start(upstream).await?;
        let url = format!("http://{}/api", proxy.addr());
        let limit: Vec<String> =
            limit.iter().flat_map(|limit| ["--limit".to_owned(), limit.to_string()]).collect();
        let (pool, process) = match side {
            Side::Ours => {
                let command = Command::new(bench.programs.path("prefect-worker")?)
                    .args(["start", "--type", "docker", "--pool", "ours", "--name", "ours"])
                    .args(limit)
                    .envs(self.server.client_env())
                    .env("PREFECT_API_URL", &url);
                ("ours", command.spawn()?)
            }
            Side::Peer => {
                let mut args = vec!["--name", "peer"];
                args.extend(limit.iter().map(String::as_str));
                ("peer", self.server.start_python_worker("peer", &args, &[("PREFECT_API_URL", &url)])?)
            }
        };
        let worker = async {
            while self.client.read_work_pool(pool).await?.is_none() {
                sleep(Duration::from_millis(100)).await;
            }
            let deployment = self.deploy(pool).await?;
            Ok(Worker { process, proxy, deployment })
        };
        tokio::time::timeout(READY, worker)
            .await
            .with_context(|| format!("the worker of {pool} made no pool"))?
    }

    async fn deploy(&self, pool: &str) -> Result<DeploymentId> {
        let flow_id = self.client.create_flow("puppet").await?.id;
        let settings = DeploymentSettings {
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            work_pool_name: Some(pool.to_owned()),
            job_variables: Map::from_iter([("image".to_owned(), Value::from(self.image.clone()))]),
            ..DeploymentSettings::default()
        };
        let deployment =
            NewDeployment { name: pool.to_owned(), flow_id, settings, enforce_parameter_schema: false };
        Ok(self.client.create_deployment(&deployment).await?.id)
    }

    /// Creates a run, due now.
    async fn create_run(&self, deployment: DeploymentId, behaviour: &Behaviour) -> Result<FlowRun> {
        let job_variables = Some(behaviour.job_variables(&self.server.api_url(), None));
        let run = NewDeploymentRun { job_variables, ..NewDeploymentRun::default() };
        Ok(self.client.create_deployment_run(deployment, &run).await?)
    }
}

/// A running worker, its way to the server, and its deployment.
struct Worker {
    process: Process,
    proxy: CountingProxy,
    deployment: DeploymentId,
}

impl Worker {
    fn usage(&self) -> Result<Usage> {
        self.process.usage().with_context(|| format!("the worker has ended:\n{}", self.process.tail(20)))
    }

    /// Stops the worker. It leaves its containers, of which there are none any more.
    async fn stop(self) -> Result<()> {
        self.process.stop(STOP).await?;
        Ok(())
    }
}

/// Removes the containers of these runs.
async fn remove_containers(engine: &Engine, runs: &[FlowRun]) -> Result<()> {
    for run in runs {
        containers::remove(engine.api(), &containers::of_run(engine.api(), run.id).await?).await;
    }
    Ok(())
}
