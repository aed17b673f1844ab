//! `prefect-worker healthcheck`.

use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::control::{self, Reply, Request};
use crate::error::Error;

/// Tells whether the workers on this machine, or in this container, are well: exit code 0, or 1 and why not.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only the worker of this name.
    #[arg(short, long)]
    name: Option<String>,
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let mut code = ExitCode::SUCCESS;
    let mut text = String::new();
    for chosen in control::find(arguments.name.as_deref(), &super::environment).await? {
        let Reply::Health(report) = chosen.ask(&Request::Health).await? else { continue };
        let worker = &chosen.status.worker;
        let line = if report.ok {
            format!("ok: the worker {worker:?} is {}\n", chosen.status.state.name())
        } else {
            code = ExitCode::FAILURE;
            format!("unhealthy: the worker {worker:?}: {}\n", report.problems())
        };
        text.push_str(&line);
    }
    print(&text);
    Ok(code)
}
