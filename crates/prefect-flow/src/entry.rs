//! The command line of a flow binary, and how its process ends.

use std::error::Error as StdError;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use prefect_api::id::FlowRunId;
use prefect_client::{Client, Settings, settings};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::deploy::{self, Deploy};
use crate::engine::{self, Death, End, Engine, Options};
use crate::error::{chain, panic_message};
use crate::exit::Exit;
use crate::parameters::{Parameters, parse_argument};
use crate::program::Program;
use crate::serve::{Runs, Serve, Stop};
use crate::terminal::Terminal;

/// Under this name workers call whatever is in an image.
const PREFECT: &str = "prefect";

/// At least so many threads, however few processors there are: code that blocks its thread must not stop the
/// engine.
const THREADS: usize = 4;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Work on flow runs, as `prefect flow-run` does.
    FlowRun(FlowRunCommand),
    /// List the flows of this program.
    List,
    /// Print the JSON Schema of a flow's parameters.
    Schema {
        /// The flow's name.
        #[arg(required_unless_present = "all")]
        flow: Option<String>,
        /// The schemas of all flows, as one JSON object by flow name: what deployments are made from.
        #[arg(long, conflicts_with = "flow")]
        all: bool,
    },
    /// Make a deployment of a flow in a work pool, or change the one of that name.
    Deploy(Box<Deploy>),
    /// Make deployments of flows and run their runs, each in a process of its own, until Ctrl-C.
    Serve(Box<Serve>),
    /// Run a flow now, without a deployment.
    Run {
        /// The flow's name.
        flow: String,
        /// A parameter; the value is JSON, or text if it is not.
        #[arg(long = "param", short = 'p', value_name = "NAME=VALUE", value_parser = parse_argument)]
        parameters: Vec<(String, Value)>,
    },
}

#[derive(Debug, Args)]
struct FlowRunCommand {
    #[command(subcommand)]
    command: FlowRunAction,
}

#[derive(Debug, Subcommand)]
enum FlowRunAction {
    /// Execute a flow run that exists on the server.
    Execute {
        /// The run's id.
        #[arg(env = "PREFECT__FLOW_RUN_ID")]
        id: Option<FlowRunId>,
    },
    /// Run the hooks of a flow run whose process died: those for a crash, or for a cancellation. The run's state stays
    /// as it is. Exits with 1 if the run is in another state, or a hook failed.
    Hook {
        /// How the run ended.
        ended: Death,
        /// The run's id.
        #[arg(env = "PREFECT__FLOW_RUN_ID")]
        id: Option<FlowRunId>,
    },
}

/// Runs the program with the arguments of the process.
pub(crate) fn main(program: Program) -> Exit {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Err(error) = program.check() {
        return fail(&error, Exit::Failure, None);
    }
    let cli = match parse(&program, arguments) {
        Ok(cli) => cli,
        Err((error, hint)) => {
            if error.print().is_err() {
                tracing::debug!("nobody reads the command line's errors");
            }
            if let Some(hint) = hint {
                say(&format!("hint: {hint}"));
            }
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    match cli.command {
        Command::List => list(&program),
        Command::Schema { flow: Some(flow), .. } => schema(&program, &flow),
        Command::Schema { flow: None, .. } => schemas(&program),
        Command::Run { flow, parameters } => {
            if program.find(&flow).is_none() {
                return unknown_flow(&program, &flow);
            }
            start(program, Job::Run { flow, parameters: parameters.into_iter().collect() })
        }
        Command::Deploy(deploy) => match program.find(&deploy.flow).map(Arc::clone) {
            Some(flow) => make_deployments(|client, _, _| async move {
                let deployment = deploy.run(&client, flow.as_ref(), program.version).await?;
                print(&format!("{}/{}\t{}", flow.info().name, deployment.name, deployment.id));
                Ok(())
            }),
            None => unknown_flow(&program, &deploy.flow),
        },
        Command::Serve(serve) => {
            if let Some(unknown) = serve.flows.iter().find(|name| program.find(name).is_none()) {
                return unknown_flow(&program, unknown);
            }
            let is_served = |name: &String| serve.flows.is_empty() || serve.flows.contains(name);
            let flows = program.flows().filter(|flow| is_served(&flow.info().name)).map(Arc::clone).collect();
            make_deployments(|client, runs, stop| serve.run(client, flows, program.version, runs, stop))
        }
        Command::FlowRun(FlowRunCommand { command }) => match command {
            FlowRunAction::Execute { id: Some(id) } => start(program, Job::Execute(id)),
            FlowRunAction::Hook { ended, id: Some(id) } => start(program, Job::Hook(ended, id)),
            FlowRunAction::Execute { id: None } => no_id("execute a flow run"),
            FlowRunAction::Hook { id: None, .. } => no_id("run the hooks of a flow run"),
        },
    }
}

fn no_id(what: &str) -> Exit {
    say(&format!("error: failed to {what}: no id was given"));
    say("hint: name the id, or set PREFECT__FLOW_RUN_ID as a worker does");
    Exit::Usage
}

/// What there is to do.
pub(crate) enum Job {
    Execute(FlowRunId),
    Hook(Death, FlowRunId),
    Run { flow: String, parameters: Parameters },
}

fn parse(program: &Program, arguments: Vec<OsString>) -> Result<Cli, (clap::Error, Option<String>)> {
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    let poses = called.is_some_and(|name| name == PREFECT);
    let mut command = Cli::command()
        .name(if poses { PREFECT } else { program.name })
        .about(program.about.clone())
        .version(program.version);
    let matches = command.try_get_matches_from_mut(arguments).map_err(|error| {
        let hint = poses.then(|| {
            format!(
                "this `prefect` is {} {}, which holds the flows {}; it knows `flow-run execute` of Prefect's \
                 commands",
                program.name,
                program.version,
                program.names()
            )
        });
        let hint = hint.filter(|_| error.use_stderr());
        (error, hint)
    })?;
    Cli::from_arg_matches(&matches).map_err(|error| (error, None))
}

fn list(program: &Program) -> Exit {
    for flow in program.flows() {
        let info = flow.info();
        match &info.description {
            Some(description) => print(&format!("{}\t{description}", info.name)),
            None => print(&info.name),
        }
    }
    Exit::Ok
}

fn schema(program: &Program, name: &str) -> Exit {
    match program.find(name) {
        Some(flow) => {
            print(&format!("{:#}", flow.schema()));
            Exit::Ok
        }
        None => unknown_flow(program, name),
    }
}

fn schemas(program: &Program) -> Exit {
    let all: serde_json::Map<_, _> =
        program.flows().map(|flow| (flow.info().name.clone(), flow.schema())).collect();
    print(&format!("{:#}", Value::Object(all)));
    Exit::Ok
}

fn unknown_flow(program: &Program, name: &str) -> Exit {
    say(&format!("error: failed to find flow '{name}'"));
    say(&format!("hint: the flows of this program are {}", program.names()));
    Exit::Usage
}

/// Sets up the process for work on deployments, without an engine.
fn make_deployments<F>(work: impl FnOnce(Client, Runs, Stop) -> F) -> Exit
where
    F: Future<Output = Result<(), deploy::Error>>,
{
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => return bad_settings(&error),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return fail(&error, Exit::Failure, None),
    };
    let (logging, runs) = match (settings::Logging::new(&settings), Runs::new(program, &settings)) {
        (Ok(logging), Ok(runs)) => (logging, runs),
        (Err(error), _) | (_, Err(error)) => return bad_settings(&error),
    };
    Terminal::standard_error().install_tracing(&logging);
    let client = match Client::new(&settings) {
        Ok(client) => client,
        Err(error) => return fail(&error, Exit::Config, error.hint()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, Exit::Failure, None),
    };
    let done = runtime.block_on(async {
        let stop = Stop::default();
        let mut signals = JoinSet::new();
        let asked = stop.clone();
        signals.spawn(forward_signals(move || asked.ask()));
        work(client, runs, stop).await
    });
    match done {
        Ok(()) => Exit::Ok,
        Err(error) => fail(&error, error.exit(), error.hint()),
    }
}

/// Sets up the process and does the job.
fn start(program: Program, job: Job) -> Exit {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => return bad_settings(&error),
    };
    let options = match Options::from_settings(&settings) {
        Ok(options) => options,
        Err(error) => return bad_settings(&error),
    };
    let terminal = Terminal::standard_error();
    terminal.install_tracing(&options.logging);
    let client = match Client::new(&settings) {
        Ok(client) => client,
        Err(error) => return fail(&error, Exit::Config, error.hint()),
    };
    let threads =
        std::thread::available_parallelism().map_or(THREADS, |processors| processors.get().max(THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, Exit::Failure, None),
    };
    let exit = runtime.block_on(async {
        let engine = Engine::start(client, options, terminal, &program);
        let mut signals = JoinSet::new();
        let terminated = Arc::clone(&engine);
        signals.spawn(forward_signals(move || terminated.terminate()));
        let exit = work(&engine, program, job).await;
        engine.close().await;
        exit
    });
    // Blocking threads of a flow that did not stop must not keep the process.
    runtime.shutdown_background();
    exit
}

/// Does the job in a task of its own, so that a panic of the engine is reported too.
pub(crate) async fn work(engine: &Arc<Engine>, program: Program, job: Job) -> Exit {
    let executed = match &job {
        Job::Execute(id) => Some(*id),
        Job::Hook(..) | Job::Run { .. } => None,
    };
    let mut job_task = JoinSet::new();
    let (inner, flows) = (Arc::clone(engine), program.clone());
    job_task.spawn(async move {
        match job {
            Job::Execute(id) => Ok(exit_of(&engine::execute(&inner, &flows, id).await?, false)),
            Job::Hook(death, id) => match engine::after_death(&inner, &flows, id, death).await? {
                0 => Ok(Exit::Ok),
                _ => Ok(Exit::Failure),
            },
            Job::Run { flow, parameters } => match flows.find(&flow) {
                Some(flow) => Ok(exit_of(&engine::run_by_hand(&inner, flow, &parameters).await?, true)),
                None => Ok(unknown_flow(&flows, &flow)),
            },
        }
    });
    let joined = tokio::select! {
        joined = job_task.join_next() => joined,
        () = engine.out_of_time() => {
            tracing::error!("ended before the Prefect server knew the end of the run");
            return Exit::Failure;
        }
    };
    match joined {
        Some(Ok(Ok(exit))) => exit,
        Some(Ok(Err(error))) => {
            let exit = exit_of_error(&error);
            fail(&error, exit, hint_of(&error))
        }
        Some(Err(error)) => {
            let message = if error.is_panic() {
                format!("The engine of the flow run panicked: {}", panic_message(&*error.into_panic()))
            } else {
                "The engine of the flow run vanished".to_owned()
            };
            tracing::error!("{message}");
            if let Some(id) = executed
                && let Err(error) = engine::crash(engine, &program, id, Some(message)).await
            {
                tracing::error!(error = chain(&error), "the crash could not be reported");
            }
            Exit::Failure
        }
        None => Exit::Failure,
    }
}

const fn exit_of(end: &End, by_hand: bool) -> Exit {
    match end {
        End::Crashed(_) => Exit::Failure,
        End::Failed(_) | End::Cancelled if by_hand => Exit::Failure,
        _ => Exit::Ok,
    }
}

fn exit_of_error(error: &engine::Error) -> Exit {
    use engine::Error as E;
    match error {
        E::UnknownFlow { .. } => Exit::Config,
        E::OtherState { .. } => Exit::Failure,
        E::Parameters { .. } => Exit::Usage,
        E::Read { source, .. } | E::Report { source, .. } | E::Create { source, .. } => match source.status()
        {
            Some(401 | 403) => Exit::Config,
            _ if source.is_transient() => Exit::Unavailable,
            _ => Exit::Failure,
        },
    }
}

fn hint_of(error: &engine::Error) -> Option<&'static str> {
    use engine::Error as E;
    match error {
        E::UnknownFlow { .. } => Some("does the deployment's image belong to another version of the flows?"),
        E::OtherState { .. } => {
            Some("hooks are for runs that have ended in that way and are not tried again")
        }
        E::Parameters { .. } => Some("`schema FLOW` prints what the flow takes"),
        E::Read { source, .. } if source.is_not_found() => {
            Some("is PREFECT_API_URL the server on which the run was made?")
        }
        E::Read { source, .. } | E::Report { source, .. } | E::Create { source, .. } => source.hint(),
    }
}

fn bad_settings(error: &settings::Error) -> Exit {
    fail(error, Exit::Config, Some(error.hint()))
}

/// Forwards the signals that ask the process to end.
async fn forward_signals(asked: impl Fn()) {
    use tokio::signal::unix::{SignalKind, signal};
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        tracing::warn!("signals cannot be received: the run will not be reported when the process is ended");
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("received SIGTERM"),
            _ = interrupt.recv() => tracing::info!("received SIGINT"),
        }
        asked();
    }
}

fn fail(error: &(dyn StdError + 'static), exit: Exit, hint: Option<&str>) -> Exit {
    say(&format!("error: failed to {}", chain(error)));
    if let Some(hint) = hint {
        say(&format!("hint: {hint}"));
    }
    exit
}

#[expect(clippy::print_stdout, reason = "what a command was asked for goes to standard output")]
fn print(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "what a command has to say goes to standard error")]
fn say(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoxError, Context, Flow};
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Nothing {}

    fn program() -> Program {
        let idle = |_: Context, _: Nothing| async { Ok::<_, BoxError>(()) };
        Program::new("archiver-flows", "1.0").flow(Flow::new("archive", idle))
    }

    fn parsed(line: &str) -> Result<Cli, (String, Option<String>)> {
        let arguments = line.split(' ').map(OsString::from).collect();
        parse(&program(), arguments).map_err(|(error, hint)| (error.to_string(), hint))
    }

    #[test]
    fn a_pools_default_command_is_understood() {
        let id = "5da21991-6db8-4553-a6a4-6bb61b1aae34";
        for line in [format!("prefect flow-run execute {id}"), format!("/app/x flow-run execute {id}")] {
            let Command::FlowRun(FlowRunCommand { command: FlowRunAction::Execute { id: found } }) =
                parsed(&line).unwrap().command
            else {
                panic!("not an execution")
            };
            assert_eq!(found.unwrap().to_string(), id);
        }
    }

    #[test]
    fn hooks_are_run_for_the_run_that_a_worker_names() {
        let id = "5da21991-6db8-4553-a6a4-6bb61b1aae34";
        for (word, death) in [("crashed", Death::Crashed), ("cancelled", Death::Cancelled)] {
            let line = format!("prefect flow-run hook {word} {id}");
            let Command::FlowRun(FlowRunCommand { command: FlowRunAction::Hook { ended, id: found } }) =
                parsed(&line).unwrap().command
            else {
                panic!("no hooks")
            };
            assert_eq!((ended, found.unwrap().to_string()), (death, id.to_owned()));
        }
        assert!(
            parsed(&format!("prefect flow-run hook failed {id}")).is_err(),
            "failures are told in the process"
        );
    }

    #[test]
    fn parameters_are_json_or_text() {
        let Command::Run { flow, parameters } =
            parsed("x run archive -p ids=[\"a\"] --param id=20.500/1").unwrap().command
        else {
            panic!("not a run")
        };
        assert_eq!(flow, "archive");
        assert_eq!(parameters[0].1, serde_json::json!(["a"]));
        assert_eq!(parameters[1].1, "20.500/1");
    }

    #[test]
    fn who_takes_us_for_prefect_is_told() {
        let (error, hint) = parsed("/usr/bin/prefect worker start").unwrap_err();
        assert!(error.contains("unrecognized subcommand 'worker'"), "{error}");
        assert!(hint.unwrap().contains("archiver-flows 1.0, which holds the flows 'archive'"));
        assert_eq!(parsed("/app/archiver-flows worker start").unwrap_err().1, None);
    }

    #[test]
    fn exit_codes_say_who_has_to_act() {
        let failed = End::Failed("no".into());
        assert_eq!(exit_of(&failed, false), Exit::Ok);
        assert_eq!(exit_of(&failed, true), Exit::Failure);
        assert_eq!(exit_of(&End::Crashed(String::new()), false), Exit::Failure);
        let (id, known) = (FlowRunId::generate(), String::new());
        let unknown = engine::Error::UnknownFlow { id, flow: String::new(), known };
        assert_eq!(exit_of_error(&unknown), Exit::Config);
    }
}
