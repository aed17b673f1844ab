//! One run on its way: its process, its witness, and the troubles of its line.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use prefect_api::id::FlowRunId;
use testkit::process::{Command, Process};
use testkit::proxy::FaultyProxy;
use tokio::time::{Instant, sleep};

use super::bench::Bench;
use super::line;
use super::plan::Strike;
use super::report::Struck;
use super::witness::{Witness, reached};
use crate::say;

const LOOK: Duration = Duration::from_millis(100);
/// How long a run is waited for. Troubles last a minute at most; what a client waits for after each is much less.
const PATIENCE: Duration = Duration::from_mins(12);
/// Lines of a process's output that a report quotes.
const QUOTED: usize = 40;

/// A run that is about to be executed.
pub(super) struct Player {
    number: Option<usize>,
    run: FlowRunId,
    command: Command,
    witness: Witness,
    line: Option<FaultyProxy>,
    strikes: Vec<Strike>,
}

/// What was seen of a run from outside.
pub(super) struct Played {
    pub(super) run: FlowRunId,
    /// How its process ended, if it did.
    pub(super) exit: Option<ExitStatus>,
    /// How often each body of a task was executed in which attempt.
    pub(super) executions: BTreeMap<String, usize>,
    /// The highest resident memory of its process, in bytes.
    pub(super) rss_peak: u64,
    pub(super) strikes: Vec<Struck>,
    /// The end of its process's output.
    pub(super) said: String,
}

impl Player {
    /// Makes a run, and a line with these strikes on it if there are any. The undisturbed run has no number.
    pub(super) async fn new(bench: &Bench, number: Option<usize>, strikes: Vec<Strike>) -> Result<Self> {
        let name = number.map_or_else(|| "undisturbed".to_owned(), |number| format!("run-{number}"));
        let line = if strikes.is_empty() { None } else { Some(bench.line().await?) };
        let run = bench.run().await?;
        Ok(Self {
            number,
            run,
            command: bench.program(run, &name, line.as_ref())?,
            witness: Witness::new(bench.file(&name, "witness")),
            line,
            strikes,
        })
    }

    pub(super) const fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Executes the run, whose way has this length, and strikes meanwhile.
    pub(super) async fn play(self, length: u64) -> Result<Played> {
        let mut process = self.command.spawn()?;
        let mut strikes = Vec::new();
        let (exit, rss_peak) = tokio::select! {
            ended = watch(&mut process) => ended?,
            never = self.strike(length, &mut strikes) => match never {},
        };
        Ok(Played {
            run: self.run,
            exit,
            executions: self.witness.executions(),
            rss_peak,
            strikes,
            said: process.tail(QUOTED),
        })
    }

    /// Strikes, each at its moment; then only the run's own end is to come.
    async fn strike(&self, length: u64, struck: &mut Vec<Struck>) -> std::convert::Infallible {
        if let Some(line) = &self.line {
            for strike in &self.strikes {
                reached(std::slice::from_ref(&self.witness), strike.after, length).await;
                sleep(Duration::from_millis(strike.delay)).await;
                let begun = Struck::begin(*strike, self.number);
                say(&begun.text());
                struck.push(begun);
                line::strike(line, *strike).await;
                if let Some(last) = struck.last_mut() {
                    last.end();
                }
            }
        }
        std::future::pending().await
    }
}

/// Waits for the end of a process; gives the most memory that it had.
async fn watch(process: &mut Process) -> Result<(Option<ExitStatus>, u64)> {
    let (started, mut rss_peak) = (Instant::now(), 0);
    while process.is_running() {
        if started.elapsed() > PATIENCE {
            process.kill();
            return Ok((None, rss_peak));
        }
        rss_peak = process.usage().map_or(rss_peak, |usage| usage.rss_peak.max(rss_peak));
        sleep(LOOK).await;
    }
    Ok((Some(process.wait(LOOK).await?), rss_peak))
}
