//! The world that the cases run in: one server, a work pool for each template, and what the cases refer to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::id::{DeploymentId, FlowId};
use prefect_api::work_pool::{BaseJobTemplate, NewWorkPool};
use prefect_client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::docker::{Container, Engine, Image};
use testkit::prefect::{Database, Options, PrefectServer};
use testkit::process::{Command, Process};

use super::case::{Case, Pool, Tokens, VARIABLES, filled};
use super::drive::Side;
use crate::programs::Programs;
use crate::runs::{self, patiently};

/// The name of both workers, so that it does not differ.
const WORKER: &str = "differential";
const FLOW: &str = "differential";
const PYTHON: Duration = Duration::from_mins(2);

const DEFAULT_TEMPLATE: &str = include_str!("../../../../../job-templates/docker.json");
const CUSTOM_TEMPLATE: &str = include_str!("../../../differential/worker/custom-template.json");
/// Makes the blocks that cases refer to, and prints the id of one as JSON.
const BLOCKS: &str = include_str!("../../../differential/worker/blocks.py");

/// Services of the server that no worker needs; without them each run costs less.
const IDLE_SERVICES: [&str; 7] = [
    "CANCELLATION_CLEANUP",
    "EVENT_PERSISTER",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "TASK_RUN_RECORDER",
    "TRIGGERS",
];

/// The variables that cases refer to.
fn variables() -> [(&'static str, Value); 6] {
    [
        ("text", json!("from a variable")),
        ("number", json!(64)),
        ("flag", json!(true)),
        ("list", json!(["/from-a-variable"])),
        ("object", json!({"A": "from a variable", "B": null})),
        ("memory", json!("96m")),
    ]
}

pub(super) struct Bench {
    pub(super) engine: Arc<Engine>,
    pub(super) client: Client,
    server: PrefectServer,
    programs: Programs,
    pools: BTreeMap<Pool, String>,
    flow: FlowId,
    tokens: Tokens,
    /// Logs of our workers, and a directory that cases mount.
    files: TempDir,
}

/// A case with the deployment that its runs come from.
pub(super) struct Deployed {
    pub(super) case: Case,
    pub(super) deployment: DeploymentId,
    pub(super) run_name: String,
}

impl Bench {
    pub(super) async fn start(engine: Arc<Engine>, programs: Programs) -> Result<Self> {
        let files = tempfile::tempdir().context("failed to make a directory")?;
        let env = IDLE_SERVICES
            .map(|service| (format!("PREFECT_SERVER_SERVICES_{service}_ENABLED"), "false".to_owned()))
            .to_vec();
        // On SQLite so many runs at a time are refused with 503 until Python's worker gives up.
        let server =
            PrefectServer::start(Options { env, database: Database::Postgres, ..Options::default() });
        let (tokens, server) = tokio::try_join!(fixtures(&engine, &programs, &files), server)?;
        let client = runs::client(&server.api_url(), &server.client_env())?;
        let flow = client.create_flow(FLOW).await?.id;
        for (name, value) in variables() {
            client.set_variable(name, &value).await?;
        }
        let mut bench =
            Self { engine, client, server, programs, pools: BTreeMap::new(), flow, tokens, files };
        let block = bench.server.python(BLOCKS, &[], PYTHON).await?.success()?;
        bench.tokens.insert("block", block.stdout.trim().to_owned());
        for pool in [Pool::Default, Pool::Open, Pool::Custom] {
            let name = format!("{pool:?}").to_lowercase();
            let pool_template = template(pool, &bench.tokens)?;
            let new = NewWorkPool {
                name: name.clone(),
                kind: "docker".to_owned(),
                base_job_template: Some(pool_template),
                description: None,
                concurrency_limit: None,
                is_paused: false,
            };
            bench.client.create_work_pool(&new).await?;
            bench.pools.insert(pool, name);
        }
        Ok(bench)
    }

    /// Makes a deployment for each case.
    pub(super) async fn deploy(&self, cases: &[Case]) -> Result<Vec<Deployed>> {
        let id = self.tokens.get("id").map_or("", String::as_str);
        let mut deployed = Vec::new();
        for case in cases {
            let case = case.filled(&self.tokens);
            let name = case.name.replace('/', "-");
            if let Some(taken) = &case.taken {
                let image = self.tokens.get("image").cloned().unwrap_or_default();
                let network = self.tokens.get("network").cloned();
                let name = Some(taken.clone());
                let container = Container { image, name, network, ..Container::default() };
                self.engine.run(container).await?;
            }
            let settings = DeploymentSettings {
                work_pool_name: self.pools.get(&case.pool).cloned(),
                job_variables: case.deployment.clone(),
                parameters: json!({"number": 7, "text": "a b"}).as_object().cloned().unwrap_or_default(),
                parameter_openapi_schema: json!({"type": "object", "properties": {}}),
                tags: vec!["first tag".to_owned()],
                version: Some("1.2".to_owned()),
                ..DeploymentSettings::default()
            };
            let new = NewDeployment {
                name: name.clone(),
                flow_id: self.flow,
                settings,
                enforce_parameter_schema: false,
            };
            let made = patiently(|| self.client.create_deployment(&new)).await;
            let made = made.with_context(|| format!("the server refuses the deployment of {}", case.name))?;
            let run_name = case.run_name.clone().unwrap_or_else(|| format!("{id}-{name}"));
            deployed.push(Deployed { case, deployment: made.id, run_name });
        }
        Ok(deployed)
    }

    /// Starts a worker of this side on each pool that a case runs in.
    pub(super) fn start_workers(&self, side: Side, cases: &[Deployed]) -> Result<BTreeMap<Pool, Process>> {
        // Both poll often: what is compared is not how soon they come.
        let poll = ("PREFECT_WORKER_QUERY_SECONDS", "2");
        let start = |pool: &String| match side {
            Side::Python => self.server.start_python_worker(pool, &["--name", WORKER], &[poll]),
            Side::Ours => Command::new(self.programs.path("prefect-worker")?)
                .args(["start", "--pool", pool, "--name", WORKER])
                .envs(self.server.client_env())
                .env(poll.0, poll.1)
                .log_to(self.files.path().join(format!("worker-{pool}.log")))
                .spawn(),
        };
        let used = |kind: &Pool| cases.iter().any(|deployed| deployed.case.pool == *kind);
        let pools = self.pools.iter().filter(|(kind, _)| used(kind));
        pools.map(|(kind, name)| Ok((*kind, start(name)?))).collect()
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.server.stop().await
    }
}

fn template(pool: Pool, tokens: &Tokens) -> Result<BaseJobTemplate> {
    let text = if pool == Pool::Custom { CUSTOM_TEMPLATE } else { DEFAULT_TEMPLATE };
    let mut template: Value = serde_json::from_str(text).context("failed to read a template")?;
    if pool != Pool::Custom {
        for section in ["/job_configuration", "/variables/properties"] {
            let section = template.pointer_mut(section).and_then(Value::as_object_mut);
            section
                .context("the template lacks a section")?
                .retain(|name, _| VARIABLES.contains(&name.as_str()));
        }
    }
    if pool == Pool::Open {
        let properties = template.pointer_mut("/variables/properties").and_then(Value::as_object_mut);
        for schema in properties.into_iter().flat_map(|properties| properties.values_mut()) {
            *schema = schema.get("default").map_or_else(|| json!({}), |default| json!({"default": default}));
        }
    }
    Ok(serde_json::from_value(filled(&template, tokens))?)
}

/// What cases refer to, by token.
async fn fixtures(engine: &Engine, programs: &Programs, files: &TempDir) -> Result<Tokens> {
    let id = engine.name("differential");
    let image = format!("{id}:1");
    let probe = programs.path("ferryman-idle")?;
    // Whatever a case lets run, it is the probe.
    let mut contents = Image::scratch().file("/probe", probe).bytes("/unique", image.clone(), 0o644);
    for path in ["/bin/prefect", "/bin/sh", "/bin/echo", "/bin/true", "/opt/tini"] {
        contents = contents.symlink(path, "/probe");
    }
    let image_id = engine.build_image(&image, contents.cmd(["/probe", "the image's own command"])).await?;
    let tokens = Tokens::from([
        ("network", format!("{id}-one")),
        ("network-2", format!("{id}-two")),
        ("volume", format!("{id}-volume")),
        ("container", format!("{id}-neighbour")),
        ("dir", files.path().join("mounted").display().to_string()),
        ("image-id", image_id),
        ("image", image),
        ("id", id),
    ]);
    let token = |name: &str| tokens.get(name).cloned().unwrap_or_default();
    std::fs::create_dir(token("dir")).context("failed to make a directory")?;
    engine.create_network(&token("network")).await?;
    engine.create_network(&token("network-2")).await?;
    engine.create_volume(&token("volume")).await?;
    let neighbour = Container {
        image: token("image"),
        name: Some(token("container")),
        network: Some(token("network")),
        binds: vec![format!("{}:/shared", token("volume"))],
        ..Container::default()
    };
    engine.run(neighbour).await?;
    Ok(tokens)
}
