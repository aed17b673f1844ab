//! The command line: `prefect-worker start …`, and the same as `prefect worker start …` when the executable
//! is called `prefect`. A module per command; each has a struct of arguments and a function that runs it.

mod doctor;
mod drain;
mod healthcheck;
mod logging;
mod reap;
mod signals;
mod start;
mod status;
mod text;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, chain};
use crate::launcher::process::supervisor;

/// Runs the flow runs of a Prefect work pool, each in a container of its own.
#[derive(Debug, Parser)]
#[command(name = "prefect-worker", version)]
struct Cli {
    /// The profile of `profiles.toml` whose settings count.
    #[arg(long, global = true, value_name = "NAME")]
    profile: Option<String>,
    /// Accepted and without effect: nothing is ever asked.
    #[arg(long, global = true, hide = true, overrides_with = "no_prompt")]
    prompt: bool,
    /// Accepted and without effect: nothing is ever asked.
    #[arg(long, global = true, hide = true, overrides_with = "prompt")]
    no_prompt: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a worker that serves a work pool.
    Start(Box<start::Start>),
    /// Show what the workers here are doing.
    Status(status::Arguments),
    /// Let a worker claim no more runs, and leave when those it has end.
    Drain(drain::Arguments),
    /// Tell whether the workers here are well.
    Healthcheck(healthcheck::Arguments),
    /// Tell what ended runs have left on the container engine, and remove it with --yes.
    Reap(reap::Arguments),
    /// Tell whether a worker would work here.
    Doctor(doctor::Arguments),
    /// What the container of a doctor runs.
    #[command(hide = true)]
    ProbeMounts(doctor::ProbeArguments),
}

/// Runs the command line and gives the exit code: 0 ok, 1 failure, 2 usage, 64 configuration, 69 unavailable.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    // Processes of the process launcher: not for people, and started once per run.
    if let Some(code) = supervisor::main(&arguments) {
        return code;
    }
    let cli = match Cli::try_parse_from(normalised(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nobody can be told that the terminal is gone.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("start the asynchronous runtime: {error}"), None);
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            complain(&chain(&error), error.hint());
            ExitCode::from(error.exit_code())
        }
    };
    // Reads of a socket or a terminal may hang in threads that nobody waits for.
    runtime.shutdown_background();
    code
}

async fn run(cli: Cli) -> Result<ExitCode, Error> {
    match cli.command {
        Command::Start(start) => start::run(*start, cli.profile.as_deref()).await?,
        Command::Status(arguments) => status::run(arguments).await?,
        Command::Drain(arguments) => drain::run(arguments).await?,
        Command::Healthcheck(arguments) => return healthcheck::run(arguments).await,
        Command::Reap(arguments) => return reap::run(arguments, cli.profile.as_deref()).await,
        Command::Doctor(arguments) => return doctor::run(arguments, cli.profile.as_deref()).await,
        Command::ProbeMounts(arguments) => doctor::show_mounts(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}

/// `prefect worker start` is `prefect-worker start`, also with the options that stand before `worker`.
fn normalised(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called_prefect = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == "prefect");
    let mut position = 1;
    while let Some(option) = arguments.get(position).filter(|word| word.to_string_lossy().starts_with('-')) {
        position += if option == "--profile" { 2 } else { 1 };
    }
    if called_prefect && arguments.get(position).is_some_and(|argument| argument == "worker") {
        arguments.remove(position);
    }
    arguments
}
/// The variables of this process.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Results go to stdout.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // Nobody can be told that the reader is gone.
    drop(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
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
    use std::num::NonZeroUsize;

    use prefect_client::settings::Inputs;
    use prefect_client::{Client, Settings};

    use super::start::Start;
    use super::*;

    fn parse(line: &str) -> Result<Start, clap::Error> {
        let arguments = line.split(' ').map(OsString::from).collect();
        Cli::try_parse_from(normalised(arguments)).map(|cli| match cli.command {
            Command::Start(start) => *start,
            other => panic!("this is no start: {other:?}"),
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
            assert_eq!(
                (start.pools.as_slice(), start.kind.as_deref()),
                (&["pool".to_owned()][..], Some("docker"))
            );
            assert_eq!(start.work_queues, ["a", "b"]);
            assert_eq!((start.limit.map(NonZeroUsize::get), start.prefetch_seconds), (Some(3), Some(5)));
            assert!(start.run_once && start.with_healthcheck && start.no_create_pool_if_not_found);
        }
    }

    #[tokio::test]
    async fn a_worker_without_a_name_is_called_as_pythons_worker_of_its_type() {
        let environment = [("PREFECT_API_URL".to_owned(), "http://127.0.0.1:9/api".to_owned())].into();
        let inputs = Inputs { environment, directory: "/nonexistent".into() };
        let client = Client::new(&Settings::resolve(&inputs).unwrap()).unwrap();
        for (more, class) in [
            ("--type process", "ProcessWorker "),
            ("--type docker", "DockerWorker "),
            ("-l 1", "DockerWorker "),
        ] {
            let start = parse(&format!("prefect-worker start -p p {more}")).unwrap();
            let name = start.default_name(&client).await;
            assert!(name.len() > class.len() && name.starts_with(class), "{name}");
        }
    }

    #[test]
    fn options_of_a_session_stand_anywhere() {
        for line in [
            "prefect --profile site --no-prompt worker start -p p",
            "prefect --profile=site worker start -p p --no-run-once --no-with-healthcheck --empty-work-queue",
            "prefect-worker start -p p --profile site --prompt",
        ] {
            let arguments = line.split(' ').map(OsString::from).collect();
            let cli = Cli::try_parse_from(normalised(arguments)).unwrap();
            assert_eq!(cli.profile.as_deref(), Some("site"), "{line}");
            let Command::Start(start) = cli.command else { panic!("this is no start") };
            assert!(!start.run_once && !start.with_healthcheck && start.work_queues.is_empty());
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
