//! The command line: `prefect-worker start …`, and the same as `prefect worker start …` when the executable
//! is called `prefect`.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use prefect_api::template::JobTemplate;
use prefect_api::work_pool::BaseJobTemplate;
use prefect_client::{Client, Settings};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use crate::error::{Error, chain};
use crate::launcher::{DockerLauncher, Launcher};
use crate::options::Options;
use crate::worker::Worker;

/// Runs the flow runs of a Prefect work pool, each in a container of its own.
#[derive(Debug, Parser)]
#[command(name = "prefect-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a worker that serves a work pool.
    Start(Start),
}

/// The flags of `prefect worker start`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "these are the switches of a command line")]
struct Start {
    /// Name of the worker; two processes of one name are one worker to the server.
    #[arg(short, long, value_parser = worker_name)]
    name: Option<String>,
    /// The work pool to serve.
    #[arg(short, long)]
    pool: String,
    /// A work queue to serve (repeatable); none means all.
    #[arg(short = 'q', long = "work-queue", value_name = "QUEUE")]
    work_queues: Vec<String>,
    /// Type of the worker; by default the pool's.
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Seconds before its time at which a run is claimed [default: `PREFECT_WORKER_PREFETCH_SECONDS` or 10].
    #[arg(long, value_name = "SECONDS")]
    prefetch_seconds: Option<u64>,
    /// Poll once, wait for the runs of that poll, end.
    #[arg(long)]
    run_once: bool,
    /// The most runs at a time.
    #[arg(short, long, value_name = "RUNS")]
    limit: Option<NonZeroUsize>,
    /// Tell health at /health, by default on port 8080 (`PREFECT_WORKER_WEBSERVER_HOST`, `…_PORT`).
    #[arg(long)]
    with_healthcheck: bool,
    /// Accepted and without effect: this worker has nothing to install.
    #[arg(long, value_enum, default_value_t = InstallPolicy::Prompt)]
    install_policy: InstallPolicy,
    /// JSON file with the base job template of a pool that this worker creates.
    #[arg(long, value_name = "FILE")]
    base_job_template: Option<PathBuf>,
    /// Create the pool if it does not exist; the default.
    #[arg(long, overrides_with = "no_create_pool_if_not_found")]
    create_pool_if_not_found: bool,
    /// Do not create the pool.
    #[arg(long, overrides_with = "create_pool_if_not_found")]
    no_create_pool_if_not_found: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum InstallPolicy {
    Always,
    IfNotPresent,
    Never,
    Prompt,
}

/// Runs the command line and gives the exit code: 0 ok, 1 failure, 2 usage, 64 configuration, 69 unavailable.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(normalised(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nobody can be told that the terminal is gone.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let Command::Start(start) = cli.command;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("start the asynchronous runtime: {error}"), None);
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(start_worker(start)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&chain(&error), error.hint());
            ExitCode::from(error.exit_code())
        }
    };
    // Reads of a socket or a terminal may hang in threads that nobody waits for.
    runtime.shutdown_background();
    code
}

/// `prefect worker start` is `prefect-worker start`.
fn normalised(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called_prefect = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == "prefect");
    if called_prefect && arguments.get(1).is_some_and(|argument| argument == "worker") {
        arguments.remove(1);
    }
    arguments
}

fn worker_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(['/', '%']) {
        return Err("a worker's name must not be empty and must not contain '/' or '%'".to_owned());
    }
    Ok(name.to_owned())
}

async fn start_worker(start: Start) -> Result<(), Error> {
    let settings = Settings::from_env()?;
    start_logging(&settings);
    let stop = CancellationToken::new();
    let signals = tokio::spawn(watch_signals(stop.clone()));

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
    match kind.as_str() {
        "docker" => Ok(Arc::new(DockerLauncher::connect(&|name| std::env::var(name).ok()).await?)),
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

/// Diagnostics go to stderr: stdout belongs to the output of the containers.
fn start_logging(settings: &Settings) {
    let level = settings.get("PREFECT_LOGGING_LEVEL").unwrap_or("INFO").to_ascii_lowercase();
    let level = match level.as_str() {
        "warning" => "warn",
        "critical" => "error",
        "notset" => "trace",
        other => other,
    };
    let filter =
        EnvFilter::builder().with_default_directive(tracing::level_filters::LevelFilter::INFO.into());
    let filter = filter.parse_lossy(
        std::env::var("RUST_LOG")
            .unwrap_or_else(|_| format!("warn,prefect_worker={level},prefect_client={level}")),
    );
    let installed = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .try_init();
    if installed.is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// The first SIGTERM or SIGINT asks the worker to stop; a second one ends the process at once.
async fn watch_signals(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught: the worker will not stop gracefully");
        return;
    };
    either(&mut terminate, &mut interrupt).await;
    tracing::info!("stopping: no more claims; containers go on");
    stop.cancel();
    either(&mut terminate, &mut interrupt).await;
    #[expect(clippy::exit, reason = "the user insists: nothing is worth waiting for")]
    std::process::exit(1);
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn complain(error: &str, hint: Option<&str>) {
    let mut stderr = std::io::stderr().lock();
    let mut text = format!("error: failed to {error}\n");
    if let Some(hint) = hint {
        text.push_str("hint: ");
        text.push_str(hint);
        text.push('\n');
    }
    // Nobody can be told that the terminal is gone.
    drop(stderr.write_all(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Start, clap::Error> {
        let arguments = line.split(' ').map(OsString::from).collect();
        Cli::try_parse_from(normalised(arguments)).map(|cli| match cli.command {
            Command::Start(start) => start,
        })
    }

    #[test]
    fn both_names_take_the_same_flags() {
        for program in ["prefect-worker start", "/usr/bin/prefect worker start"] {
            let start = parse(&format!(
                "{program} -p pool --type docker -q a --work-queue b --limit 3 -n w --run-once --install-policy never \
                 --prefetch-seconds 5 --with-healthcheck --no-create-pool-if-not-found"
            ))
            .unwrap();
            assert_eq!((start.pool.as_str(), start.kind.as_deref()), ("pool", Some("docker")));
            assert_eq!(start.work_queues, ["a", "b"]);
            assert_eq!((start.limit.map(NonZeroUsize::get), start.prefetch_seconds), (Some(3), Some(5)));
            assert!(start.run_once && start.with_healthcheck && start.no_create_pool_if_not_found);
        }
    }

    #[test]
    fn names_that_the_server_refuses_are_usage_errors() {
        for line in [
            "prefect-worker start --pool p --name a/b",
            "prefect-worker start",
            "prefect-worker start -p x -l y",
            "prefect-worker start -p x -l 0",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
