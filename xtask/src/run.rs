//! Commands that build the programs and hand over to one of them.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::build::{self, Cargo};
use crate::{Demo, Differential, Fault, Profile, check};

pub(crate) fn demo(demo: &Demo) -> Result<ExitCode> {
    check::for_demo()?;
    let mut command = stack(demo.profile)?;
    command.arg("demo");
    if let Some(dataset) = &demo.dataset {
        command.arg("--dataset").arg(std::path::absolute(dataset)?);
    }
    command.args(demo.keep.then_some("--keep")).args(demo.json.then_some("--json"));
    hand_over(command)
}

pub(crate) fn measure(name: Option<&str>, options: &[(&str, Option<u64>)], json: bool) -> Result<ExitCode> {
    check::for_measurements()?;
    let mut command = stack(Profile::Release)?;
    command.arg("measure").args(name).args(json.then_some("--json"));
    add_options(&mut command, options);
    hand_over(command)
}

pub(crate) fn fault(what: &Fault) -> Result<ExitCode> {
    let (name, options, faults) = match what {
        Fault::Worker { kills, faults } => {
            check::for_faults()?;
            ("worker", vec![("--kills", *kills)], faults)
        }
        Fault::Engine { tasks, longest, faults } => {
            check::for_demo()?;
            ("engine", vec![("--tasks", *tasks), ("--longest", *longest)], faults)
        }
    };
    let mut command = stack(faults.profile)?;
    command.args(["fault", name]).args(faults.json.then_some("--json"));
    add_options(&mut command, &options);
    add_options(&mut command, &[("--runs", faults.runs), ("--seed", faults.seed)]);
    hand_over(command)
}

pub(crate) fn differential(differential: &Differential) -> Result<ExitCode> {
    check::for_differentials()?;
    let mut command = stack(differential.profile)?;
    command.args(["differential", &differential.what]);
    command.args(differential.quick.then_some("--quick")).args(differential.json.then_some("--json"));
    if let Some(only) = &differential.only {
        command.args(["--only", only]);
    }
    if let Some(directory) = &differential.screenshots {
        check::for_screenshots()?;
        command.arg("--screenshots").arg(std::path::absolute(directory)?);
    }
    hand_over(command)
}

pub(crate) fn images(profile: Profile, tag: &str) -> Result<ExitCode> {
    check::for_images()?;
    let mut command = stack(profile)?;
    command.args(["images", "--tag", tag]);
    hand_over(command)
}

/// The program of the crate `e2e`, freshly built with everything that it starts.
fn stack(profile: Profile) -> Result<Command> {
    say(&format!("building ({profile:?}); the first time takes some minutes"));
    let programs = Cargo::new()?.build(profile)?;
    let mut command = Command::new(programs.join("ferryman-stack"));
    command.current_dir(build::root());
    Ok(command)
}

/// Adds the options that were given.
fn add_options(command: &mut Command, options: &[(&str, Option<u64>)]) {
    for (option, value) in options {
        if let Some(value) = value {
            command.arg(option).arg(value.to_string());
        }
    }
}

/// Runs a command in our place: signals go to both, and its end is ours.
fn hand_over(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec()).with_context(|| format!("failed to start {}", command.get_program().display()))
}

/// Tells the person at the terminal; standard output is for results.
#[expect(clippy::print_stderr, reason = "this is the one place that does")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
