//! `prefect-worker reap`.

mod judge;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use clap::Args;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use prefect_client::{Client, Settings};

use super::print;
use crate::error::{Error, chain};
use crate::launcher::docker::{Leftover, Leftovers, Purpose};
use crate::launcher::{LaunchError, Phase};
use crate::runs;
use judge::{Judge, Verdict};
use report::{Item, Kind, Outcome, Report};

/// Removes what ended runs have left on the container engine: containers of workers of this project whose end is
/// reported. Without --yes it only tells what it would remove.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only what was made for this work pool (repeatable).
    #[arg(short, long = "pool", value_name = "POOL")]
    pools: Vec<String>,
    /// Only what ended at least this long ago: 90m, 24h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    older_than: SignedDuration,
    /// Remove it.
    #[arg(short, long)]
    yes: bool,
    /// One JSON document instead of lines.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments, profile: Option<&str>) -> Result<ExitCode, Error> {
    let settings = Settings::from_env_and_profile(profile)?;
    let client = Client::new(&settings)?;
    client.health().await?;
    let engine = Leftovers::connect(&super::environment).await?;
    let mut reaper = Reaper { engine, remove: arguments.yes, outage: None };

    let containers = reaper.engine.containers(&arguments.pools).await?;
    let judge = judge(&client, &arguments, &containers).await?;
    let mut report = Report::new(&judge, arguments.yes);
    for container in &containers {
        let verdict = judge.container(container);
        report.add(reaper.container(container, verdict, judge.now).await);
    }
    print(&if arguments.json { report.json() } else { report.text() });
    Ok(match reaper.outage {
        Some(_) => ExitCode::from(69),
        None if report.has_failures() => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

/// Asks the server for all that decides about the containers.
async fn judge(client: &Client, arguments: &Arguments, containers: &[Leftover]) -> Result<Judge, Error> {
    let still = || containers.iter().filter(|container| container.phase != Phase::Running);
    let mut pools = BTreeMap::new();
    for pool in still().map(|container| &container.pool).collect::<BTreeSet<_>>() {
        pools.extend(client.read_work_pool(pool).await?.map(|found| (pool.clone(), found.id)));
    }
    let ids = still().filter_map(|container| match container.purpose {
        Purpose::Run { id, .. } => Some(id),
        Purpose::Companion => None,
    });
    Ok(Judge {
        runs: runs::read(client, ids.collect()).await?,
        pools,
        named: arguments.pools.clone(),
        older_than: arguments.older_than,
        now: Timestamp::now(),
    })
}

/// Does what was judged.
struct Reaper {
    engine: Leftovers,
    /// Else it only tells.
    remove: bool,
    /// That the engine went away: nothing more is tried.
    outage: Option<String>,
}

impl Reaper {
    async fn container(&mut self, container: &Leftover, verdict: Verdict, now: Timestamp) -> Item {
        let kind = Kind::container(container);
        let mut item = Item::new(kind, container.size, now, container.since);
        match verdict {
            Verdict::Keep(reason) => item.reason = reason,
            Verdict::Remove(reason) => {
                item.reason = reason;
                item.outcome = Outcome::WouldRemove;
                if self.remove {
                    let removal = match &self.outage {
                        None => self
                            .engine
                            .remove_container(&container.id)
                            .await
                            .map_err(|error| self.failed(&error)),
                        Some(outage) => Err(outage.clone()),
                    };
                    item.settle(removal);
                }
            }
        }
        item
    }

    /// The text of a failure, which is remembered if it is everybody's.
    fn failed(&mut self, error: &LaunchError) -> String {
        let text = chain(error);
        if matches!(error, LaunchError::Unreachable { .. }) {
            self.outage = Some(text.clone());
        }
        text
    }
}

/// A time such as `90m`, `24h` or `7d`, where a day has 24 hours.
fn duration(text: &str) -> Result<SignedDuration, String> {
    let span: Result<Span, _> = text.trim().parse();
    let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    match duration {
        Ok(duration) if !duration.is_negative() => Ok(duration),
        _ => Err("it must be a time such as 90m, 24h or 7d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, hours) in [("24h", 24), ("7d", 168), ("1w", 168), ("120m", 2), ("1h 60m", 2), ("0s", 0)] {
            assert_eq!(duration(text), Ok(SignedDuration::from_hours(hours)), "{text}");
        }
        for wrong in ["", "24", "soon", "-1h", "1h ago", "1 month", "1y", "99999999999999999999h"] {
            assert!(duration(wrong).unwrap_err().contains("24h"), "{wrong}");
        }
    }
}
