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
use crate::launcher::docker::{Leftover, Leftovers, Purpose, Removal};
use crate::launcher::{LaunchError, Phase};
use crate::runs;
use judge::{Judge, Verdict};
use report::{Item, Kind, Report};

/// Removes what ended runs have left on the container engine: containers of workers of this project whose end is
/// reported, and images that they pulled. Without --yes it only tells what it would remove.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only containers that were made for this work pool (repeatable).
    #[arg(short, long = "pool", value_name = "POOL")]
    pools: Vec<String>,
    /// Only what ended at least this long ago: 90m, 24h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    older_than: SignedDuration,
    /// Also images that workers have pulled, that no container was made of, and that no job has used for that
    /// long.
    #[arg(long, conflicts_with = "pools")]
    images: bool,
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
    let containers = engine.containers(&arguments.pools).await?;
    let judge = judge(&client, &arguments, &containers).await?;

    let report = Report::new(&judge, arguments.yes);
    let mut reaper = Reaper { engine: &engine, judge: &judge, removes: arguments.yes, outage: None, report };
    let mut looked = Ok(());
    reaper.containers(&containers).await;
    if arguments.images && reaper.outage.is_none() {
        looked = reaper.images(&containers).await;
    }
    let Reaper { report, outage, .. } = reaper;
    // What was removed is told in any case.
    print(&if arguments.json { report.json() } else { report.text() });
    looked?;
    Ok(match outage {
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
struct Reaper<'a> {
    engine: &'a Leftovers,
    judge: &'a Judge,
    /// Else it only tells.
    removes: bool,
    /// That the engine went away: nothing more is tried.
    outage: Option<String>,
    report: Report,
}

impl Reaper<'_> {
    async fn containers(&mut self, containers: &[Leftover]) {
        for container in containers {
            let item = Item::new(Kind::container(container), container.size, self.judge.now, container.since);
            let removal = self.engine.remove_container(&container.id);
            self.settle(item, self.judge.container(container), removal).await;
        }
    }

    /// The images that nothing uses once the containers are gone that go.
    async fn images(&mut self, containers: &[Leftover]) -> Result<(), LaunchError> {
        let leaving = containers.iter().filter(|container| {
            !self.removes && matches!(self.judge.container(container), Verdict::Remove(_))
        });
        let leaving = leaving.map(|container| container.id.as_str()).collect();
        for image in &self.engine.images(&leaving).await? {
            let removal = self.engine.remove_image(image);
            match self.judge.image(image) {
                Some(verdict) => {
                    let item = Item::new(Kind::image(image), image.size, self.judge.now, image.last_used);
                    self.settle(item, verdict, removal).await;
                }
                // Only its record is left.
                None if self.removes => drop(removal.await?),
                None => {}
            }
        }
        Ok(())
    }

    /// Carries a verdict out, and reports what came of it.
    async fn settle(
        &mut self,
        mut item: Item,
        verdict: Verdict,
        removal: impl Future<Output = Result<Removal, LaunchError>>,
    ) {
        if item.judged(verdict) && self.removes {
            item.settle(match &self.outage {
                Some(outage) => Err(outage.clone()),
                None => removal.await.map_err(|error| {
                    let text = chain(&error);
                    if matches!(error, LaunchError::Unreachable { .. }) {
                        self.outage = Some(text.clone());
                    }
                    text
                }),
            });
        }
        self.report.add(item);
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
