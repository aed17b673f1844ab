//! `prefect-worker doctor`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use prefect_client::Settings;
use serde_json::json;

use super::text::line;
use super::{print, start};
use crate::doctor::{self, Finding, Probe, Request, Verdict};
use crate::error::Error;

/// Tells whether a worker would work here: API, pools, engine, and all that the deployments need. Nothing is
/// changed. Exit code 1 if a check failed.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A work pool to look at, with its deployments (repeatable).
    #[arg(short, long = "pool", value_name = "POOL")]
    pools: Vec<String>,
    /// Type of the worker, docker or process; by default the pools'.
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = ["docker", "process"])]
    kind: Option<String>,
    /// Look at this deployment and its pool, and not at all deployments (repeatable).
    #[arg(long = "deployment", value_name = "FLOW/NAME")]
    deployments: Vec<String>,
    /// TOML file with what jobs may do on this host [default: `PREFECT_WORKER_POLICY_FILE`].
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Let a container of the worker's own image look for a moment at the directories that jobs mount; needed
    /// where the worker does not see the host's files.
    #[arg(long)]
    probe_mounts: bool,
    /// The image of that container, if the worker is in none itself.
    #[arg(long, value_name = "IMAGE")]
    probe_image: Option<String>,
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

/// What a probe's container runs; for nobody else.
#[derive(Debug, Args)]
pub(super) struct ProbeArguments {
    paths: Vec<PathBuf>,
}

pub(super) fn show_mounts(arguments: &ProbeArguments) {
    print(&doctor::show_mounts(&arguments.paths));
}

pub(super) async fn run(arguments: Arguments, profile: Option<&str>) -> Result<ExitCode, Error> {
    let settings = Settings::from_env_and_profile(profile)?;
    let policy = start::policy(arguments.policy.as_deref(), &settings);
    let request = Request {
        pools: arguments.pools,
        kind: arguments.kind,
        deployments: arguments.deployments,
        probe: match arguments.probe_image {
            Some(image) => Probe::Image(image),
            None if arguments.probe_mounts => Probe::OwnImage,
            None => Probe::No,
        },
    };
    let findings = doctor::examine(&settings, policy, &request).await?;
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failed);
    print(&if arguments.json {
        format!("{}\n", json!({"ok": !failed, "checks": findings}))
    } else {
        described(&findings)
    });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
        Verdict::NotChecked => "not checked",
    }
}

/// A line per finding, with what can be done below it, and how many there are of each kind.
fn described(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut counts: BTreeMap<usize, (&str, usize)> = BTreeMap::new();
    for Finding { check, subject, verdict, found, remedy } in findings {
        counts.entry(*verdict as usize).or_insert((word(*verdict), 0)).1 += 1;
        let subject = subject.as_ref().map(|subject| format!(" {subject}")).unwrap_or_default();
        line(&mut text, format_args!("{:<12} {check}{subject}: {found}", word(*verdict)));
        if let Some(remedy) = remedy {
            line(&mut text, format_args!("{:<12}   hint: {remedy}", ""));
        }
    }
    let counts: Vec<String> = counts.values().map(|(word, count)| format!("{count} {word}")).collect();
    line(&mut text, format_args!("{}", counts.join(", ")));
    text
}
