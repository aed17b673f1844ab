//! `serve`: the program runs the runs of its own flows, each in a process of its own, as `flow.serve()` does.
//!
//! - [`runner`] finds runs that are due and has a [`child`] for each.
//! - [`child`] is one run: its claim, its process, and what the server must know when that has ended.

mod child;
mod runner;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use prefect_api::deployment::DeploymentSettings;
use prefect_api::id::DeploymentId;
use prefect_client::{Client, Settings, settings};
use tokio_util::sync::CancellationToken;

use crate::deploy::{self, Terms};
use crate::engine::Patience;
use crate::error::chain;
use crate::flow::AnyFlow;
use runner::Runner;

/// How long reports about runs are tried while the server is away.
const REPORT_DEADLINE: Duration = Duration::from_mins(15);

/// `serve [FLOW]…`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The flows to serve; all of the program's if none is named.
    pub(crate) flows: Vec<String>,
    /// The most runs at a time [default: `PREFECT_RUNNER_PROCESS_LIMIT` or 5].
    #[arg(long, value_name = "RUNS")]
    limit: Option<NonZeroUsize>,
    /// Leave the schedules active when the program ends: their runs then are late.
    #[arg(long)]
    no_pause_on_shutdown: bool,
    #[command(flatten)]
    terms: Terms,
}

/// How a runner is asked to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// No more runs; those that run are asked to end.
    pub(crate) asked: CancellationToken,
    /// Those that still run are ended.
    pub(crate) hurried: CancellationToken,
}

impl Stop {
    /// Asks; a second time, hurries.
    pub(crate) fn ask(&self) {
        if self.asked.is_cancelled() {
            self.hurried.cancel();
        }
        self.asked.cancel();
    }
}

impl Serve {
    /// Makes a deployment of each flow and runs their runs until it is asked to stop.
    pub(crate) async fn run(
        self,
        client: Client,
        flows: Vec<Arc<dyn AnyFlow>>,
        version: &str,
        settings: Runs,
        stop: Stop,
    ) -> Result<(), deploy::Error> {
        let mut deployments: Vec<DeploymentId> = Vec::new();
        for flow in &flows {
            let deployment =
                deploy::register(&client, flow.as_ref(), version, &self.terms, DeploymentSettings::default());
            deployments.push(deployment.await?.id);
            tracing::info!("serving '{}/{}'", flow.info().name, self.terms.name);
        }
        let runner = Runner {
            deployments: deployments.clone(),
            limit: self.limit.map_or(settings.limit, NonZeroUsize::get),
            poll: settings.poll,
            program: settings.program,
            patience: Arc::new(Patience::new(REPORT_DEADLINE, stop.hurried.clone())),
            client: client.clone(),
            stop,
        };
        runner.run().await;
        if self.terms.have_schedule() && !self.no_pause_on_shutdown {
            for id in deployments {
                match client.set_deployment_paused(id, true).await {
                    Ok(()) => tracing::info!("schedules are paused; serve again to resume them"),
                    Err(error) => tracing::warn!(error = chain(&error), "schedules could not be paused"),
                }
            }
        }
        Ok(())
    }
}

/// How runs are run.
#[derive(Debug)]
pub(crate) struct Runs {
    /// The program that holds the flows: this one.
    program: PathBuf,
    /// Time between two polls: `PREFECT_RUNNER_POLL_FREQUENCY`, 10.
    poll: Duration,
    /// The most runs at a time: `PREFECT_RUNNER_PROCESS_LIMIT`, 5.
    limit: usize,
}

impl Runs {
    /// What the settings say.
    pub(crate) fn new(program: PathBuf, settings: &Settings) -> Result<Self, settings::Error> {
        let limit: NonZeroUsize = settings
            .number("PREFECT_RUNNER_PROCESS_LIMIT", NonZeroUsize::new(5).unwrap_or(NonZeroUsize::MIN))?;
        let poll = settings.seconds("PREFECT_RUNNER_POLL_FREQUENCY", Duration::from_secs(10))?;
        Ok(Self { program, poll: poll.max(Duration::from_millis(100)), limit: limit.get() })
    }
}
