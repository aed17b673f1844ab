//! `prefect-worker start`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use prefect_api::template::JobTemplate;
use prefect_api::work_pool::BaseJobTemplate;
use prefect_client::{Client, Settings};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{logging, signals};
use crate::error::Error;
use crate::launcher::{DockerLauncher, Launcher, ProcessLauncher};
use crate::options::Options;
use crate::worker::Worker;

/// The flags of `prefect worker start`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "these are the switches of a command line")]
pub(super) struct Start {
    /// Name of the worker; two processes of one name are one worker to the server.
    #[arg(short, long, value_parser = worker_name)]
    pub(super) name: Option<String>,
    /// The work pool to serve.
    #[arg(short, long)]
    pub(super) pool: String,
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
    /// The most runs at a time.
    #[arg(short, long, value_name = "RUNS")]
    pub(super) limit: Option<NonZeroUsize>,
    /// Tell health at /health, by default on port 8080 (`PREFECT_WORKER_WEBSERVER_HOST`, `…_PORT`).
    #[arg(long, overrides_with = "no_with_healthcheck")]
    pub(super) with_healthcheck: bool,
    /// Do not tell health; the default.
    #[arg(long, hide = true, overrides_with = "with_healthcheck")]
    pub(super) no_with_healthcheck: bool,
    /// Accepted and without effect: this worker has nothing to install.
    #[arg(long, value_enum, default_value_t = InstallPolicy::Prompt)]
    pub(super) install_policy: InstallPolicy,
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
    let stop = CancellationToken::new();
    let signals = tokio::spawn(signals::watch(stop.clone()));

    let template = start.base_job_template.as_deref().map(read_template).transpose()?;
    let options = start.options(&settings, template)?;
    let client = Client::new(&settings)?;
    let registered = async {
        let launcher = choose_launcher(&client, &start).await?;
        Worker::register(options, &settings, client.clone(), launcher).await
    };
    let worker = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        worker = registered => worker?,
    };
    worker.run(stop).await;
    signals.abort();
    Ok(())
}

impl Start {
    fn options(&self, settings: &Settings, template: Option<BaseJobTemplate>) -> Result<Options, Error> {
        let name = self.name.clone().unwrap_or_else(|| format!("DockerWorker {}", Uuid::new_v4()));
        let mut options = Options::new(self.pool.clone(), name, settings)?;
        options.queues.clone_from(&self.work_queues);
        if let Some(seconds) = self.prefetch_seconds {
            options.prefetch = std::time::Duration::from_secs(seconds);
        }
        options.limit = self.limit.map(NonZeroUsize::get);
        options.run_once = self.run_once;
        options.base_job_template = template;
        options.create_pool = !self.no_create_pool_if_not_found;
        if self.with_healthcheck {
            let host: IpAddr =
                settings.number("PREFECT_WORKER_WEBSERVER_HOST", IpAddr::from([0, 0, 0, 0]))?;
            options.health =
                Some(SocketAddr::new(host, settings.number("PREFECT_WORKER_WEBSERVER_PORT", 8080)?));
        }
        Ok(options)
    }
}

/// The launcher for `--type`, or for the type of the pool.
async fn choose_launcher(client: &Client, start: &Start) -> Result<Arc<dyn Launcher>, Error> {
    let pool = client.read_work_pool(&start.pool).await?;
    let kind = match (&start.kind, &pool) {
        (Some(kind), Some(pool)) if *kind != pool.kind => {
            return Err(Error::PoolType {
                name: pool.name.clone(),
                expected: kind.clone(),
                actual: pool.kind.clone(),
            });
        }
        (Some(kind), _) => kind.clone(),
        (None, Some(pool)) => pool.kind.clone(),
        (None, None) => return Err(Error::UnknownPool { name: start.pool.clone() }),
    };
    let environment = |name: &str| std::env::var(name).ok();
    match kind.as_str() {
        "docker" => Ok(Arc::new(DockerLauncher::connect(&environment).await?)),
        "process" => Ok(Arc::new(ProcessLauncher::open(&environment)?)),
        _ => Err(Error::UnsupportedType { kind }),
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
