//! Build and test automation: `cargo xtask --help`.
//!
//! This program only runs other programs. It is small so that it builds in seconds; the demo and the
//! measurements themselves are in the crate `e2e`, built in the same profile as the images.

mod build;
mod check;
mod run;
mod test;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Builds, tests, shows and measures Ferryman.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Archive a directory and bring it back: a Prefect server, S3, a catalogue, our worker and our flows.
    Demo(Demo),
    /// Format, lints, unit, integration and end-to-end tests.
    Test {
        /// Only the stages whose names contain this.
        stage: Option<String>,
    },
    /// Measure ours beside the Python peer, in one run.
    Measure {
        /// Only the measurement of this name, or those whose names begin with this word.
        name: Option<String>,
        /// How many minutes a worker is watched [default: 10].
        #[arg(long)]
        minutes: Option<u64>,
        /// How many runs a burst has [default: 500], or each engine executes of the empty flow [default: 10].
        #[arg(long)]
        runs: Option<u64>,
        /// How many tasks the flow of many tasks has [default: 1000, then 10000].
        #[arg(long)]
        tasks: Option<u64>,
        /// One JSON object per figure.
        #[arg(long)]
        json: bool,
    },
    /// Let everything fail at random moments while runs go through, and look what becomes of them.
    Fault {
        /// What is tested.
        #[command(subcommand)]
        what: Fault,
    },
    /// Put the same inputs through ours and the Python peer, and tell every difference.
    Differential(Differential),
    /// Build the images of worker, runtime and config, without a registry.
    Images {
        /// How the binaries are built.
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
        /// The images' tag.
        #[arg(long, default_value = "latest")]
        tag: String,
    },
}

#[derive(Debug, Args)]
struct Demo {
    /// The directory to archive; the files of this checkout if absent.
    #[arg(long)]
    dataset: Option<std::path::PathBuf>,
    /// Leave everything running, for the browser.
    #[arg(long)]
    keep: bool,
    /// The summary as JSON on standard output.
    #[arg(long)]
    json: bool,
    /// How the binaries are built.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

#[derive(Debug, Subcommand)]
enum Fault {
    /// The worker: it, its engine and the server are killed.
    Worker {
        /// How often each part is killed; by default once for every 25 runs, and at least twice.
        #[arg(long)]
        kills: Option<u64>,
        #[command(flatten)]
        faults: Faults,
    },
    /// The engine of flows: the server is away, slow or out of reach.
    Engine {
        /// How many tasks a run has [default: 500].
        #[arg(long)]
        tasks: Option<u64>,
        /// How long the server is away at most, in seconds [default: 60].
        #[arg(long)]
        longest: Option<u64>,
        #[command(flatten)]
        faults: Faults,
    },
}

#[derive(Debug, Args)]
struct Faults {
    /// How many runs [default: 200 for the worker, 20 for the engine].
    #[arg(long)]
    runs: Option<u64>,
    /// The seed of every choice: the same seed gives the same plan [default: 1].
    #[arg(long)]
    seed: Option<u64>,
    /// The report as JSON on standard output.
    #[arg(long)]
    json: bool,
    /// How the binaries are built.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

#[derive(Debug, Args)]
struct Differential {
    /// What is compared: `worker`, for the containers that job variables lead to; `engine`, for what the server
    /// holds of flow runs.
    #[arg(value_parser = ["worker", "engine"])]
    what: String,
    /// Only the cases whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Only the few cases that stand for all.
    #[arg(long)]
    quick: bool,
    /// Keep pictures of what the UI shows of the engines' runs in this directory.
    #[arg(long, value_name = "DIRECTORY")]
    screenshots: Option<std::path::PathBuf>,
    /// The report as JSON on standard output.
    #[arg(long)]
    json: bool,
    /// How the binaries are built.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

/// A profile of `Cargo.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Optimised; what is shipped.
    Release,
    /// Quick to build; what the tests use.
    Dev,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(demo) => run::demo(&demo),
        Command::Test { stage } => test::run(stage.as_deref()),
        Command::Measure { name, minutes, runs, tasks, json } => {
            let options = [("--minutes", minutes), ("--runs", runs), ("--tasks", tasks)];
            run::measure(name.as_deref(), &options, json)
        }
        Command::Fault { what } => run::fault(&what),
        Command::Differential(differential) => run::differential(&differential),
        Command::Images { profile, tag } => run::images(profile, &tag),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            run::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
