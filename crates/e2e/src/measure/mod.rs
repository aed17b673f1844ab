//! Ours beside the Python peer, in one run on one machine. A figure alone says little; a ratio lasts.

mod archive;
pub(crate) mod cpu;
mod engine;
mod image_sizes;
mod worker;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use testkit::docker::Engine;
use testkit::prefect::{Database, PrefectServer};
use tokio::time::{Instant, sleep};

use crate::programs::Programs;
use crate::say;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Ours.
    pub ours: f64,
    /// The peer's, if there is one.
    pub peer: Option<f64>,
    /// Unit of both.
    pub unit: &'static str,
    /// Ours divided by the peer's.
    pub ratio: Option<f64>,
}

impl Figure {
    fn new(name: &str, ours: f64, peer: f64, unit: &'static str) -> Self {
        let ratio = ours / peer;
        Self {
            peer: Some(rounded(peer, 3)),
            ratio: ratio.is_finite().then(|| rounded(ratio, 4)),
            ..Self::ours(name, ours, unit)
        }
    }

    /// A figure without a peer.
    fn ours(name: &str, ours: f64, unit: &'static str) -> Self {
        Self { name: name.to_owned(), ours: rounded(ours, 3), peer: None, unit, ratio: None }
    }

    /// For a reader.
    pub fn text(&self) -> String {
        let Self { name, ours, peer, unit, ratio } = self;
        let [peer, ratio] = [peer, ratio].map(|value| value.map_or("-".to_owned(), |v| v.to_string()));
        format!("{name:<46} ours {ours:>10} peer {peer:>10} {unit:<4} ratio {ratio}")
    }
}

fn rounded(value: f64, places: i32) -> f64 {
    (value * 10f64.powi(places)).round() / 10f64.powi(places)
}

/// What every measurement may use.
struct Bench {
    engine: Arc<Engine>,
    programs: Programs,
    options: Options,
}

/// How long and how often, where it is not as usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How long a worker is watched.
    pub minutes: Option<Duration>,
    /// How many runs a burst has, or each engine executes of the empty flow.
    pub runs: Option<usize>,
    /// How many tasks the flow of many tasks has.
    pub tasks: Option<usize>,
}

/// Whose worker or engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ours,
    Peer,
}

const SIDES: [Side; 2] = [Side::Ours, Side::Peer];

impl Bench {
    async fn server(&self, database: Database) -> Result<PrefectServer> {
        let options = testkit::prefect::Options { database, ..Default::default() };
        PrefectServer::start(options).await
    }
}

/// The names of the measurements.
pub const NAMES: [&str; 8] = [
    "images",
    "worker-latency",
    "worker-idle",
    "worker-burst",
    "worker-memory",
    "engine-empty",
    "engine-tasks",
    "archive",
];

/// Whether a measurement is asked for: by its name, or by the word that its name begins with.
fn is_asked_for(measurement: &str, name: &str) -> bool {
    let rest = measurement.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Measures what `name` says, or everything, and tells each figure as soon as it is known.
pub async fn run(
    name: Option<&str>,
    options: Options,
    tell: impl FnMut(&Figure) -> Result<()>,
    interrupted: impl Future<Output = ()>,
) -> Result<()> {
    if let Some(name) = name {
        ensure!(
            NAMES.iter().any(|measurement| is_asked_for(measurement, name)),
            "there is no measurement {name:?}\nhint: there are {}",
            NAMES.join(", ")
        );
    }
    let bench = Bench { engine: Arc::new(Engine::connect().await?), programs: Programs::find()?, options };
    let outcome = tokio::select! {
        () = interrupted => bail!("interrupted"),
        outcome = all(&bench, name, tell) => outcome,
    };
    bench.engine.clean_up().await?;
    outcome
}

async fn all(bench: &Bench, only: Option<&str>, mut tell: impl FnMut(&Figure) -> Result<()>) -> Result<()> {
    for name in NAMES.into_iter().filter(|name| only.is_none_or(|only| is_asked_for(name, only))) {
        say(&format!("measuring {name}"));
        let figures = match name {
            "images" => image_sizes::measure(bench).await,
            "worker-latency" => worker::latency::measure(bench).await,
            "worker-idle" => worker::idle::measure(bench).await,
            "worker-burst" => worker::burst::measure(bench).await,
            "worker-memory" => worker::memory::measure(bench).await,
            "engine-empty" => engine::empty::measure(bench).await,
            "engine-tasks" => engine::tasks::measure(bench).await,
            _ => archive::measure(bench).await,
        };
        for figure in figures.with_context(|| format!("failed to measure {name}"))? {
            tell(&figure)?;
        }
    }
    Ok(())
}

/// Looks until there is something to see; an error if there is nothing for `deadline`.
async fn until<T>(what: &str, deadline: Duration, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(seen) = look().await? {
            return Ok(seen);
        }
        ensure!(started.elapsed() < deadline, "{what}: not within {deadline:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// The smallest value that is not below so many of a hundred.
fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle one of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_asked_for_by_name_or_by_its_first_word() {
        assert!(is_asked_for("worker-idle", "worker") && is_asked_for("worker-idle", "worker-idle"));
        assert!(!is_asked_for("worker-idle", "work") && !is_asked_for("images", "worker"));
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=30).map(f64::from).collect();
        assert!((percentile(values.clone(), 95) - 29.0).abs() < f64::EPSILON);
        assert!((median(values) - 16.0).abs() < f64::EPSILON);
    }
}
