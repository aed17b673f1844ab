//! The command line.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use prefect_client::settings::Inputs;
use prefect_client::{Client, Settings};
use tracing_subscriber::EnvFilter;

use crate::deploy::{self, Project, Selection};
use crate::{Desired, Environment, Error, Exit, Sources, apply, plan};

/// Registers variables, secrets, tag limits, work pools and deployments with a Prefect server.
///
/// Everything is read and checked before anything is written. What is already as it should be is left alone, so
/// the command may be repeated at any time.
#[derive(Debug, Parser)]
#[command(name = "prefect-config", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bootstrap: Bootstrap,
}

#[derive(Debug, Args)]
struct Bootstrap {
    /// Variables: a TOML file. An environment variable of the same name overrides a key.
    #[arg(short, long, value_name = "FILE")]
    variables: Option<PathBuf>,
    /// Secrets: environment variables that name files. `S3_USER_FILE` becomes the Secret block s3-user.
    #[arg(short, long, value_name = "NAME_FILE", num_args = 1..)]
    secrets: Vec<String>,
    /// Tag limits: a TOML file.
    #[arg(short, long, value_name = "FILE")]
    limits: Option<PathBuf>,
    /// Work pools: a directory with one TOML file each.
    #[arg(short, long, value_name = "DIR")]
    work_pools: Option<PathBuf>,
    /// Tell what would be done, but write nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Deploys what a prefect.yaml says.
    Deploy(Deploy),
}

#[derive(Debug, Args)]
struct Deploy {
    /// All deployments of the file.
    #[arg(long, required_unless_present = "names", conflicts_with = "names")]
    all: bool,
    /// This deployment: its name, or flow/name. May be repeated.
    #[arg(short, long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// The file of deployments.
    #[arg(long, value_name = "FILE", default_value = "prefect.yaml")]
    prefect_file: PathBuf,
    /// Schemas of the flows' parameters, from `archiver-flows schema --all`. Default: flows.json beside the file
    /// of deployments, if there is one.
    #[arg(long, value_name = "FILE")]
    schemas: Option<PathBuf>,
    /// Tell what would be done, but write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command line of this process.
pub async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let environment = Environment::of_process();
    let exit = run(std::env::args_os(), &environment, &mut std::io::stdout(), &mut std::io::stderr()).await;
    ExitCode::from(exit as u8)
}

/// Runs a command line: the report goes to `out`, warnings and errors to `err`.
pub async fn run(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let cli = match Cli::try_parse_from(own_words(arguments)) {
        Ok(cli) => cli,
        Err(refusal) => return explain(&refusal, out, err),
    };
    match execute(cli, environment, out, err).await {
        Ok(exit) => exit,
        Err(error) => tell(&error, err),
    }
}

/// Compose files say `prefect --no-prompt deploy --all --prefect-file FILE`: the program may be called `prefect`, or
/// be given that word first, and does not mind not to be asked for anything.
fn own_words(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = arguments.into_iter().collect();
    if words.get(1).is_some_and(|word| word == "prefect") {
        words.remove(1);
    }
    words.retain(|word| word != "--no-prompt");
    words
}

fn explain<'a>(refusal: &clap::Error, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Exit {
    let (to, exit) = if refusal.use_stderr() { (err, Exit::Usage) } else { (out, Exit::Done) };
    match write!(to, "{refusal}") {
        Ok(()) => exit,
        Err(_) => Exit::Failed,
    }
}

async fn execute(
    cli: Cli,
    environment: &Environment,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Exit, Error> {
    let (desired, warnings, dry_run) = match cli.command {
        Some(Command::Deploy(deploy)) => {
            let (deployments, warnings) = deploy::load(&deploy.project(), environment)?;
            (Desired { deployments, ..Desired::default() }, warnings, deploy.dry_run)
        }
        None => {
            let sources = cli.bootstrap.sources();
            if sources.is_empty() {
                writeln!(
                    err,
                    "error: nothing to do: say at least one of -v, -s, -l, -w, or deploy\nhint: --help"
                )?;
                return Ok(Exit::Usage);
            }
            (Desired::load(&sources, environment)?, Vec::new(), cli.bootstrap.dry_run)
        }
    };
    warn(&warnings, err)?;
    carry_out(&desired, environment, dry_run, out, err).await?;
    Ok(Exit::Done)
}

async fn carry_out(
    desired: &Desired,
    environment: &Environment,
    dry_run: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Error> {
    let inputs = Inputs { environment: environment.variables().clone(), directory: PathBuf::from(".") };
    let settings = Settings::resolve(&inputs)?;
    let client = Client::new(&settings)
        .map_err(|source| Error::Server { doing: "set up the client of the server".to_owned(), source })?;
    let plan = plan(&client, desired).await?;
    warn(&plan.warnings, err)?;
    let done = plan.is_done();
    for step in plan.steps {
        let line = step.to_string();
        if dry_run {
            writeln!(out, "[dry run] {line}")?;
        } else {
            apply(&client, step).await?;
            writeln!(out, "{line}")?;
        }
    }
    if done {
        writeln!(out, "everything is as it should be")?;
    }
    Ok(())
}

fn warn(warnings: &[String], err: &mut dyn Write) -> Result<(), Error> {
    for warning in warnings {
        writeln!(err, "warning: {warning}")?;
    }
    Ok(())
}

/// Writes an error with its causes and the way out.
fn tell(error: &Error, err: &mut dyn Write) -> Exit {
    let first = std::error::Error::source(error);
    let causes = std::iter::successors(first, |cause| cause.source());
    let mut lines = vec![format!("error: failed to {error}")];
    lines.extend(causes.map(|cause| format!("  because: {cause}")));
    lines.extend(error.hint().map(|hint| format!("hint: {hint}")));
    match writeln!(err, "{}", lines.join("\n")) {
        Ok(()) => error.exit(),
        Err(_) => Exit::Failed,
    }
}

impl Bootstrap {
    fn sources(&self) -> Sources {
        Sources {
            variables: self.variables.clone(),
            secrets: self.secrets.clone(),
            limits: self.limits.clone(),
            work_pools: self.work_pools.clone(),
        }
    }
}

impl Deploy {
    fn project(&self) -> Project {
        Project {
            file: Path::to_owned(&self.prefect_file),
            schemas: self.schemas.clone(),
            selection: if self.all { Selection::All } else { Selection::Named(self.names.clone()) },
        }
    }
}
