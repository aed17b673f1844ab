//! The command line of `ferryman-stack`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use testkit::docker::Engine;
use tokio::signal::unix::{SignalKind, signal};

use crate::differential::Part;
use crate::images::Images;
use crate::measure::Figure;
use crate::programs::Programs;
use crate::{demo, differential, fault, measure, print, say};

#[derive(Debug, Parser)]
#[command(
    name = "ferryman-stack",
    about = "The demo, the measurements, the differentials and the images of Ferryman."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Archive a directory and bring it back.
    Demo {
        /// The directory; the files of the checkout if absent.
        #[arg(long)]
        dataset: Option<PathBuf>,
        /// Leave everything running until Ctrl-C.
        #[arg(long)]
        keep: bool,
        /// The summary as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure ours beside the Python peer.
    Measure {
        /// Only this measurement.
        name: Option<String>,
        /// How many minutes a worker is watched.
        #[arg(long)]
        minutes: Option<u64>,
        /// How many runs a burst has, or each engine executes of the empty flow.
        #[arg(long)]
        runs: Option<usize>,
        /// How many tasks the flow of many tasks has.
        #[arg(long)]
        tasks: Option<usize>,
        /// One JSON object per figure.
        #[arg(long)]
        json: bool,
    },
    /// Run under faults of everything around, and look what becomes of the runs.
    Fault {
        /// What is tested.
        #[command(subcommand)]
        what: Fault,
    },
    /// Put the same inputs through ours and the Python peer, and tell every difference.
    Differential {
        /// What is compared.
        #[command(subcommand)]
        what: Differential,
    },
    /// Build the images.
    Images {
        /// Their tag.
        #[arg(long)]
        tag: String,
    },
}

#[derive(Debug, Subcommand)]
enum Fault {
    /// The worker: it, its engine and the server are killed at random moments while runs go through.
    Worker {
        /// How many runs.
        #[arg(long, default_value_t = 200)]
        runs: usize,
        /// How often each part is killed; by default once for every 25 runs, and at least twice.
        #[arg(long)]
        kills: Option<usize>,
        #[command(flatten)]
        faults: Faults,
    },
    /// The engine of flows: the server is away, slow or out of reach at random moments while runs are at work.
    Engine {
        /// How many runs.
        #[arg(long, default_value_t = 20)]
        runs: usize,
        /// How many tasks a run has.
        #[arg(long, default_value_t = 500)]
        tasks: u64,
        /// How long the server is away at most, in seconds.
        #[arg(long, default_value_t = 60)]
        longest: u64,
        #[command(flatten)]
        faults: Faults,
    },
}

#[derive(Debug, clap::Args)]
struct Faults {
    /// The seed of every choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Differential {
    /// The containers that job variables lead to.
    Worker(Compared),
    /// What the server holds of flow runs.
    Engine {
        #[command(flatten)]
        compared: Compared,
        /// Keep pictures of what the UI shows of the runs in this directory; takes a browser.
        #[arg(long, value_name = "DIRECTORY")]
        screenshots: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Compared {
    /// Only the cases whose names contain this.
    #[arg(long, conflicts_with = "quick")]
    only: Option<String>,
    /// Only the few cases that stand for all.
    #[arg(long)]
    quick: bool,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

impl Compared {
    fn options(&self) -> differential::Options {
        let part = match &self.only {
            Some(only) => Part::Named(only.clone()),
            None if self.quick => Part::Quick,
            None => Part::All,
        };
        differential::Options { part, quiet: self.json }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")
        .and_then(|runtime| runtime.block_on(run(command)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { dataset, keep, json } => {
            let options = demo::Options { dataset, keep, quiet: json };
            let summary = Box::pin(demo::run(&options, interrupted()?)).await?;
            if json {
                print(&serde_json::to_string(&summary)?);
            } else {
                say(&summary.text());
            }
        }
        Command::Measure { name, minutes, runs, tasks, json } => {
            let options = measure::Options { minutes: minutes.map(Duration::from_mins), runs, tasks };
            let tell = |figure: &Figure| {
                print(&if json { serde_json::to_string(figure)? } else { figure.text() });
                Ok(())
            };
            Box::pin(measure::run(name.as_deref(), options, tell, interrupted()?)).await?;
        }
        Command::Fault { what: Fault::Worker { runs, kills, faults: Faults { seed, json } } } => {
            let kills = kills.unwrap_or_else(|| (runs / 25).max(2));
            let options = fault::worker::Options { runs, kills, seed };
            let report = tokio::select! {
                () = interrupted()? => bail!("interrupted"),
                report = fault::worker::run(options) => report?,
            };
            print(&if json { serde_json::to_string(&report)? } else { report.text() });
            ensure!(report.ok, "the runs did not all come through");
        }
        Command::Fault { what: Fault::Engine { runs, tasks, longest, faults: Faults { seed, json } } } => {
            let longest = Duration::from_secs(longest);
            let options = fault::engine::Options { runs, tasks, seed, longest };
            let report = tokio::select! {
                () = interrupted()? => bail!("interrupted"),
                report = fault::engine::run(options) => report?,
            };
            print(&if json { serde_json::to_string(&report)? } else { report.text() });
            ensure!(report.ok, "the runs did not all come to the same");
        }
        Command::Differential { what: Differential::Worker(compared) } => {
            let report = Box::pin(differential::worker::run(&compared.options(), interrupted()?)).await?;
            print(&if compared.json { serde_json::to_string(&report)? } else { report.text() });
            ensure!(report.passed(), "the workers differ");
        }
        Command::Differential { what: Differential::Engine { compared, screenshots } } => {
            let options = compared.options();
            let compared_engines =
                differential::engine::run(&options, screenshots.as_deref(), interrupted()?);
            let report = Box::pin(compared_engines).await?;
            print(&if compared.json { serde_json::to_string(&report)? } else { report.text() });
            ensure!(report.passed(), "the engines differ");
        }
        Command::Images { tag } => {
            let (engine, programs) = (Engine::connect().await?, Programs::find()?);
            let images = Images::build(&engine, &programs, &tag, true).await?;
            images.build_servers(&engine, &programs).await?;
            for name in images.all() {
                let mebibytes = engine.image_size(name).await? >> 20;
                print(&format!("{name} {mebibytes} MiB"));
            }
        }
    }
    Ok(())
}

/// Resolves at SIGINT or SIGTERM.
fn interrupted() -> Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
