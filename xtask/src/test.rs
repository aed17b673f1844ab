//! The tests, in stages. Every stage runs, so that one run shows all that is wrong.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::build::Cargo;
use crate::check;
use crate::run::say;

/// Name of a stage and its `cargo` arguments. All tests share one build with the binaries that the end-to-end tests put
/// into images: every stage is of the whole workspace, for that decides the features of what is built.
const STAGES: [(&str, &[&str]); 6] = [
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("build", &["build", "--locked", "--workspace", "--all-targets"]),
    ("unit and integration tests", &["nextest", "run", "--locked", "--workspace", "-E", "not package(e2e)"]),
    ("documentation", &["doc", "--locked", "--workspace", "--no-deps", "--quiet"]),
    (
        "end-to-end tests",
        &["nextest", "run", "--locked", "--workspace", "-E", "package(e2e)", "--profile", "e2e"],
    ),
];

pub(crate) fn run(only: Option<&str>) -> Result<ExitCode> {
    check::for_tests()?;
    let chosen: Vec<_> =
        STAGES.iter().filter(|(name, _)| only.is_none_or(|only| name.contains(only))).collect();
    if chosen.is_empty() {
        let names: Vec<_> = STAGES.iter().map(|(name, _)| *name).collect();
        bail!("no stage is called {:?}; there are: {}", only.unwrap_or_default(), names.join(", "));
    }
    let cargo = Cargo::new()?;
    let mut results = Vec::new();
    for (name, arguments) in chosen {
        say(&format!("\n== {name}: cargo {}", arguments.join(" ")));
        let started = Instant::now();
        let passed = stage(cargo.command(arguments), name)?;
        results.push((name, passed, started.elapsed()));
    }
    say("");
    for (name, passed, took) in &results {
        say(&format!("{} {name}: {:.0} s", if *passed { "passed" } else { "FAILED" }, took.as_secs_f64()));
    }
    let failed = results.iter().filter(|(_, passed, _)| !passed).count();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn stage(mut command: Command, name: &str) -> Result<bool> {
    if name == "documentation" {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    Ok(command.status().with_context(|| format!("failed to run the stage {name}"))?.success())
}
