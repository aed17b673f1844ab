//! `prefect-worker start`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::future::join_all;
use prefect_api::template::JobTemplate;
use prefect_api::work_pool::BaseJobTemplate;
use prefect_client::{Client, Settings};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{logging, signals};
use crate::admin::Admin;
use crate::control::{ShutdownMode, ShutdownRequest};
use crate::error::{Error, chain};
use crate::identity;
use crate::launcher::{DockerLauncher, Launcher, ProcessLauncher};
use crate::options::Options;
use crate::policy::Policy;
use crate::shutdown::{OnShutdown, Shutdown};
use crate::status::State;
use crate::worker::Worker;

/// Pause between two tries to find a server that is away when the worker starts.
const START_RETRY: Duration = Duration::from_secs(2);

/// How long a worker without a name waits to learn what its pool is.
const NAMING: Duration = Duration::from_secs(3);

/// The flags of `prefect worker start`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "these are the switches of a command line")]
pub(super) struct Start {
    /// Name of the worker; two processes of one name are one worker to the server.
    #[arg(short, long, value_parser = worker_name)]
    pub(super) name: Option<String>,
    /// A work pool to serve (repeatable: one process can serve several).
    #[arg(short, long = "pool", value_name = "POOL", required = true)]
    pub(super) pools: Vec<String>,
    /// A work queue to serve (repeatable); none means all.
    #[arg(short = 'q', long = "work-queue", value_name = "QUEUE")]
    pub(super) work_queues: Vec<String>,
    /// Serve all queues; the default.
    #[arg(long, hide = true, conflicts_with = "work_queues")]
    pub(super) empty_work_queue: bool,
    /// Type of the worker; by default the pool's.
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// Seconds before its time at which a run is claimed [default: `PREFECT_WORKER_PREFETCH_SECONDS` or 10].
    #[arg(long, value_name = "SECONDS")]
    pub(super) prefetch_seconds: Option<u64>,
    /// Poll once, wait for the runs of that poll, end.
    #[arg(long, overrides_with = "no_run_once")]
    pub(super) run_once: bool,
    /// Go on polling; the default.
    #[arg(long, hide = true, overrides_with = "run_once")]
    pub(super) no_run_once: bool,
    /// The most runs at a time, per pool.
    #[arg(short, long, value_name = "RUNS")]
    pub(super) limit: Option<NonZeroUsize>,
    /// Tell health at /livez, /readyz and /health, and figures at /metrics; by default on port 8080
    /// (`PREFECT_WORKER_WEBSERVER_HOST`, `…_PORT`).
    #[arg(long, overrides_with = "no_with_healthcheck")]
    pub(super) with_healthcheck: bool,
    /// Do not tell health; the default.
    #[arg(long, hide = true, overrides_with = "with_healthcheck")]
    pub(super) no_with_healthcheck: bool,
    /// Accepted and without effect: this worker has nothing to install.
    #[arg(long, value_enum, default_value_t = InstallPolicy::Prompt)]
    pub(super) install_policy: InstallPolicy,
    /// What becomes of running runs at SIGTERM [default: `PREFECT_WORKER_ON_SHUTDOWN` or detach].
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(super) on_shutdown: Option<OnShutdown>,
    /// The most seconds that `drain` or `cancel` may take; then what still runs is left to the next worker.
    #[arg(long, value_name = "SECONDS")]
    pub(super) shutdown_timeout: Option<u64>,
    /// TOML file with what jobs may do on this host; no deployment can override it [default: `PREFECT_WORKER_POLICY_FILE`].
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,
    /// JSON file with the base job template of a pool that this worker creates.
    #[arg(long, value_name = "FILE")]
    pub(super) base_job_template: Option<PathBuf>,
    /// Create the pool if it does not exist; the default.
    #[arg(long, overrides_with = "no_create_pool_if_not_found")]
    pub(super) create_pool_if_not_found: bool,
    /// Do not create the pool.
    #[arg(long, overrides_with = "create_pool_if_not_found")]
    pub(super) no_create_pool_if_not_found: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum InstallPolicy {
    Always,
    IfNotPresent,
    Never,
    Prompt,
}

fn worker_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(['/', '%']) {
        return Err("a worker's name must not be empty and must not contain '/' or '%'".to_owned());
    }
    Ok(name.to_owned())
}
pub(super) async fn run(start: Start, profile: Option<&str>) -> Result<(), Error> {
    let settings = Settings::from_env_and_profile(profile)?;
    logging::start(&settings)?;
    let on_shutdown = match start.on_shutdown {
        Some(given) => given,
        None => settings.choice("PREFECT_WORKER_ON_SHUTDOWN", OnShutdown::default())?,
    };
    let shutdown = Shutdown::new();
    let deadline = start.shutdown_timeout.map(Duration::from_secs);
    let signals = tokio::spawn(signals::watch(shutdown.clone(), on_shutdown, deadline));

    let template = start.base_job_template.as_deref().map(read_template).transpose()?;
    let client = Client::new(&settings)?;
    let name = match &start.name {
        Some(name) => name.clone(),
        None => start.default_name(&client).await,
    };
    let options = start.options(&name, &settings, template.as_ref())?;
    let admin = Admin::new(&name, client.clone());
    let served = CancellationToken::new();
    let (requests, mut servers) = admin.open(start.http(&settings)?, &served).await?;
    let obeying = tokio::spawn(obey(requests, shutdown.clone(), (on_shutdown, deadline), admin.clone()));
    let policy = policy(start.policy.as_deref(), &settings)?;
    let mut launchers = BTreeMap::new();
    let mut workers = Vec::new();
    for options in options {
        let registered = async {
            loop {
                match register(&options, &start, &settings, &client, policy.as_ref(), &mut launchers, &admin)
                    .await
                {
                    Err(error) if error.is_outage() => {
                        tracing::warn!(error = chain(&error), "the server is away, trying again");
                        tokio::time::sleep(START_RETRY).await;
                    }
                    registered => return registered,
                }
            }
        };
        let worker = tokio::select! {
            biased;
            () = shutdown.requested() => return Ok(()),
            worker = registered => worker?,
        };
        workers.push(worker);
    }
    admin.status.set_state(State::Running);
    join_all(workers.into_iter().map(|worker| worker.run(shutdown.clone()))).await;
    admin.status.set_state(State::Stopping);
    signals.abort();
    obeying.abort();
    served.cancel();
    while servers.join_next().await.is_some() {}
    Ok(())
}

impl Start {
    /// The name that Python's worker of the same type gives itself. A pool may be of either type: where that
    /// cannot be learnt soon, it is taken for the usual one.
    pub(super) async fn default_name(&self, client: &Client) -> String {
        let of_pool = async {
            let pool = client.read_work_pool(self.pools.first()?).await.ok()??;
            Some(pool.kind)
        };
        let kind = match &self.kind {
            Some(kind) => Some(kind.clone()),
            None => tokio::time::timeout(NAMING, of_pool).await.ok().flatten(),
        };
        let class = if kind.as_deref() == Some("process") { "ProcessWorker" } else { "DockerWorker" };
        format!("{class} {}", own_identity())
    }

    /// Options for each of the pools.
    fn options(
        &self,
        name: &str,
        settings: &Settings,
        template: Option<&BaseJobTemplate>,
    ) -> Result<Vec<Options>, Error> {
        let mut all = Vec::new();
        for pool in &self.pools {
            let mut options = Options::new(pool.clone(), name.to_owned(), settings)?;
            options.queues.clone_from(&self.work_queues);
            if let Some(seconds) = self.prefetch_seconds {
                options.prefetch = Duration::from_secs(seconds);
            }
            options.limit = self.limit.map(NonZeroUsize::get);
            options.run_once = self.run_once;
            options.base_job_template = template.cloned();
            options.create_pool = !self.no_create_pool_if_not_found;
            all.push(options);
        }
        Ok(all)
    }

    /// Where health and figures are told over HTTP.
    fn http(&self, settings: &Settings) -> Result<Option<SocketAddr>, Error> {
        if !self.with_healthcheck {
            return Ok(None);
        }
        let host: IpAddr = settings.number("PREFECT_WORKER_WEBSERVER_HOST", IpAddr::from([0, 0, 0, 0]))?;
        Ok(Some(SocketAddr::new(host, settings.number("PREFECT_WORKER_WEBSERVER_PORT", 8080)?)))
    }
}

/// The policy of the command line, else of the settings.
pub(super) fn policy(given: Option<&Path>, settings: &Settings) -> Result<Option<Policy>, Error> {
    let path = given.or_else(|| settings.get("PREFECT_WORKER_POLICY_FILE").map(Path::new));
    let Some(path) = path else { return Ok(None) };
    let policy = Policy::load(path)?;
    tracing::info!(policy = %path.display(), "jobs may do what the policy allows");
    Ok(Some(policy))
}

/// What a worker without a name is called after: its container, if it is in one, so that it knows itself
/// again when it is restarted; else something unique.
fn own_identity() -> String {
    identity::container_id().unwrap_or_else(|| Uuid::new_v4().to_string())
}

/// Does what is asked for through the control socket, and shows on the board when an end was asked for.
async fn obey(
    mut requests: mpsc::Receiver<ShutdownRequest>,
    shutdown: Shutdown,
    as_signals: (OnShutdown, Option<Duration>),
    admin: Admin,
) {
    let mut over: Option<Instant> = None;
    let mut shown = false;
    loop {
        let time_is_over = async {
            match over {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(request) = requests.recv() => {
                let (what, deadline) = match request.mode {
                    ShutdownMode::Drain => (OnShutdown::Drain, request.deadline),
                    ShutdownMode::Stop => as_signals,
                };
                shutdown.request(what);
                over = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
            }
            () = time_is_over => {
                tracing::warn!("the time for stopping is over");
                shutdown.request(OnShutdown::Detach);
                over = None;
            }
            () = shutdown.requested(), if !shown => {
                shown = true;
                admin.status.set_state(State::Draining);
            }
        }
    }
}

async fn register(
    options: &Options,
    start: &Start,
    settings: &Settings,
    client: &Client,
    policy: Option<&Policy>,
    launchers: &mut BTreeMap<String, Arc<dyn Launcher>>,
    admin: &Admin,
) -> Result<Worker, Error> {
    let kind = pool_type(client, &options.pool, start.kind.as_deref()).await?;
    let launcher = if let Some(launcher) = launchers.get(&kind) {
        Arc::clone(launcher)
    } else {
        let launcher = connect(&kind, policy).await?;
        launchers.insert(kind, Arc::clone(&launcher));
        admin.health.needs(Arc::clone(&launcher));
        launcher
    };
    Worker::register(options.clone(), settings, client.clone(), launcher, admin).await
}

/// The type of the pool, which must be the one asked for.
async fn pool_type(client: &Client, name: &str, wanted: Option<&str>) -> Result<String, Error> {
    let pool = client.read_work_pool(name).await?;
    match (wanted, pool) {
        (Some(wanted), Some(pool)) if wanted != pool.kind => {
            Err(Error::PoolType { name: pool.name, expected: wanted.to_owned(), actual: pool.kind })
        }
        (Some(wanted), _) => Ok(wanted.to_owned()),
        (None, Some(pool)) => Ok(pool.kind),
        (None, None) => Err(Error::UnknownPool { name: name.to_owned() }),
    }
}

/// The launcher for pools of this type.
async fn connect(kind: &str, policy: Option<&Policy>) -> Result<Arc<dyn Launcher>, Error> {
    let environment = |name: &str| std::env::var(name).ok();
    match kind {
        "docker" => {
            let launcher = DockerLauncher::connect(&environment).await?;
            Ok(match policy {
                Some(policy) => Arc::new(launcher.with_policy(policy.clone())),
                None => Arc::new(launcher),
            })
        }
        // Its rules are about containers: nothing would keep them here.
        "process" if policy.is_some() => Err(Error::PolicyWithoutContainers { kind: kind.to_owned() }),
        "process" => Ok(Arc::new(ProcessLauncher::open(&environment)?)),
        _ => Err(Error::UnsupportedType { kind: kind.to_owned() }),
    }
}

fn read_template(path: &Path) -> Result<BaseJobTemplate, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::TemplateFile { path: path.to_owned(), source })?;
    let template: BaseJobTemplate = serde_json::from_str(&text)
        .map_err(|source| Error::TemplateSyntax { path: path.to_owned(), source })?;
    JobTemplate::parse(&template)
        .map_err(|source| Error::Template { origin: format!("the file {}", path.display()), source })?;
    Ok(template)
}
