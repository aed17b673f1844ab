//! Ours beside the Python peer, in one run on one machine. A figure alone says little; a ratio lasts.

mod archive;
mod cpu;
mod empty_flow;
mod idle_worker;
mod image_sizes;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use testkit::docker::Engine;
use testkit::prefect::PrefectServer;

use crate::programs::Programs;
use crate::{print, say};

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Ours.
    pub ours: f64,
    /// The peer's.
    pub peer: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// Ours divided by the peer's.
    pub ratio: f64,
}

impl Figure {
    fn new(name: &str, ours: f64, peer: f64, unit: &'static str) -> Self {
        let round = |value: f64, places: i32| (value * 10f64.powi(places)).round() / 10f64.powi(places);
        Self {
            name: name.to_owned(),
            ours: round(ours, 3),
            peer: round(peer, 3),
            unit,
            ratio: round(ours / peer, 4),
        }
    }
}

/// What every measurement may use.
struct Bench {
    engine: Arc<Engine>,
    programs: Programs,
}

impl Bench {
    async fn server(&self) -> Result<PrefectServer> {
        PrefectServer::start(testkit::prefect::Options::default()).await
    }
}

/// The names of the measurements.
pub const NAMES: [&str; 4] = ["images", "worker", "empty-flow", "archive"];

/// Measures what `name` says, or everything, and prints the figures.
pub async fn run(name: Option<&str>, json: bool, interrupted: impl Future<Output = ()>) -> Result<()> {
    if let Some(name) = name {
        ensure!(
            NAMES.contains(&name),
            "there is no measurement {name:?}\nhint: there are {}",
            NAMES.join(", ")
        );
    }
    let bench = Bench { engine: Arc::new(Engine::connect().await?), programs: Programs::find()? };
    let outcome = tokio::select! {
        () = interrupted => bail!("interrupted"),
        outcome = all(&bench, name, json) => outcome,
    };
    bench.engine.clean_up().await?;
    outcome
}

async fn all(bench: &Bench, only: Option<&str>, json: bool) -> Result<()> {
    for name in NAMES.into_iter().filter(|name| only.is_none_or(|only| only == *name)) {
        say(&format!("measuring {name}"));
        let figures = match name {
            "images" => image_sizes::measure(bench).await,
            "worker" => idle_worker::measure(bench).await,
            "empty-flow" => empty_flow::measure(bench).await,
            _ => archive::measure(bench).await,
        };
        for figure in figures.with_context(|| format!("failed to measure {name}"))? {
            if json {
                print(&serde_json::to_string(&figure)?);
            } else {
                let Figure { name, ours, peer, unit, ratio } = figure;
                print(&format!("{name:<34} ours {ours:>10} peer {peer:>10} {unit:<4} ratio {ratio}"));
            }
        }
    }
    Ok(())
}

/// The middle one of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
