//! `prefect-worker drain`.

use std::time::Duration;

use clap::Args;

use super::print;
use crate::control::{self, Chosen, Request};
use crate::error::Error;

/// Lets a worker on this machine, or in this container, claim no more runs and leave when those it has end.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The worker of this name; needed if there are several.
    #[arg(short, long)]
    name: Option<String>,
    /// Wait until the worker has left.
    #[arg(long)]
    wait: bool,
    /// Seconds after which the worker leaves all the same: what still runs is left to the next worker.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// How long a worker may take to leave after its deadline.
const LEAVING: Duration = Duration::from_secs(30);

pub(super) async fn run(arguments: Arguments) -> Result<(), Error> {
    let chosen = Chosen::only(control::find(arguments.name.as_deref(), &super::environment).await?)?;
    let request = Request::Drain { deadline_seconds: arguments.timeout };
    let deadline = arguments.timeout.map(|seconds| Duration::from_secs(seconds).saturating_add(LEAVING));
    let ending = chosen.ask_to_end(&request).await?;
    if arguments.wait {
        ending.wait(deadline).await?;
    }
    let (worker, runs) =
        (&chosen.status.worker, chosen.status.pools.iter().map(|pool| pool.runs.len()).sum::<usize>());
    print(&if arguments.wait {
        format!("the worker {worker:?} has left\n")
    } else {
        format!("the worker {worker:?} claims no more runs; it has {runs}\n")
    });
    Ok(())
}
