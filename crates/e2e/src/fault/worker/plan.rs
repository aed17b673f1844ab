//! What is to happen, all of it from one seed: the runs, who cancels them when, and what is killed when.

use std::fmt;
use std::time::Duration;

use prefect_api::state::StateType;
use serde::Serialize;

use crate::dice::Dice;
use crate::puppet::{Behaviour, End};

/// How a test under faults is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many runs.
    pub runs: usize,
    /// How often each part is killed.
    pub kills: usize,
    /// The seed of every choice.
    pub seed: u64,
}

/// A run to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedRun {
    pub(super) behaviour: Behaviour,
    /// Whether the worker is to remove its container.
    pub(super) auto_remove: bool,
    /// Whether it belongs to the deployment with a concurrency limit.
    pub(super) limited: bool,
    /// Whether its exit code 0 is to count as Completed.
    pub(super) exit_counts: bool,
    pub(super) cancel: Option<Cancel>,
}

impl PlannedRun {
    /// The state that it ends in when nobody disturbs it.
    pub(super) fn natural_end(&self) -> StateType {
        match &self.behaviour {
            Behaviour { end: End::Exit, code: 0, .. } if self.exit_counts => StateType::Completed,
            behaviour => behaviour.natural_end(),
        }
    }
}

/// When a run is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cancel {
    /// So long after its creation.
    Created(Duration),
    /// So long after its program was started.
    Started(Duration),
}

/// A part that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Part {
    Worker,
    Engine,
    Server,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Engine => "engine",
            Self::Server => "server",
        })
    }
}

/// What a moment is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Progress {
    /// Runs that a worker has claimed.
    Claims,
    /// Programs that were started.
    Starts,
    /// Runs that came to a final state.
    Ends,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claims => "claims",
            Self::Starts => "starts",
            Self::Ends => "ends",
        })
    }
}

/// The end of a part, and how it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Strike {
    pub(super) part: Part,
    pub(super) after: Progress,
    /// How much of it.
    pub(super) count: usize,
    /// And how much later, in milliseconds.
    pub(super) delay: u64,
    /// How long the part stays away, in milliseconds.
    pub(super) away: u64,
    /// An engine that comes back takes its containers back; otherwise it ends them.
    pub(super) live_restore: bool,
    /// A worker gets SIGTERM instead of SIGKILL.
    pub(super) gently: bool,
}

impl Strike {
    /// Whether it ends the containers that run when the part comes back.
    pub(super) fn ends_containers(&self) -> bool {
        self.part == Part::Engine && !self.live_restore
    }
}

/// All that is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) runs: Vec<PlannedRun>,
    /// In the order in which they come.
    pub(super) strikes: Vec<Strike>,
}

impl Plan {
    pub(super) fn new(options: Options) -> Self {
        let mut dice = Dice::new(options.seed);
        let runs = (0..options.runs).map(|_| run(&mut dice)).collect();
        Self { runs, strikes: strikes(options, &mut dice) }
    }
}

fn run(dice: &mut Dice) -> PlannedRun {
    let (reports, end, code) = match dice.within(0..100) {
        0..30 => (true, End::Complete, 0),
        30..40 => (true, End::Fail, 1),
        40..52 => (true, End::Exit, 3),
        52..62 => (true, End::Exit, 0),
        62..74 => (false, End::Exit, 3),
        74..84 => (false, End::Exit, 0),
        84..92 => (dice.chance(50), End::Memory, 137),
        _ => (dice.chance(50), End::Abort, 139),
    };
    let millis = match dice.within(0..10) {
        0..3 => dice.within(0..200),
        3..8 => dice.within(500..4_000),
        _ => dice.within(4_000..12_000),
    };
    let listens = reports && dice.chance(50);
    let behaviour = Behaviour { reports, listens, deaf: dice.chance(3), millis, end, code };
    let cancel = dice.chance(15).then(|| {
        let moment = Duration::from_millis(dice.within(0..3_000));
        if dice.chance(50) { Cancel::Created(moment) } else { Cancel::Started(moment) }
    });
    let exit_counts = !reports && end == End::Exit && dice.chance(60);
    PlannedRun { behaviour, auto_remove: dice.chance(50), limited: dice.chance(25), exit_counts, cancel }
}

/// The strikes lie in the first nine tenths of the runs, so that what they leave is met by further runs.
fn strikes(options: Options, dice: &mut Dice) -> Vec<Strike> {
    let count = 3 * options.kills;
    let parts = [Part::Worker, Part::Engine, Part::Server];
    let order = dice.shuffled(count);
    let mut strikes: Vec<Strike> = order
        .into_iter()
        .enumerate()
        .map(|(place, number)| {
            let part = parts.get(number % parts.len()).copied().unwrap_or(Part::Worker);
            let (from, to) =
                (options.runs * 9 * place / (10 * count), options.runs * 9 * (place + 1) / (10 * count));
            let after = match dice.within(0..3) {
                0 => Progress::Claims,
                1 => Progress::Starts,
                _ => Progress::Ends,
            };
            Strike {
                part,
                after,
                count: usize::try_from(dice.within(from as u64..to as u64 + 1)).unwrap_or(from).max(1),
                delay: dice.within(0..400),
                away: if dice.chance(50) { dice.within(0..500) } else { dice.within(500..5_000) },
                live_restore: part == Part::Engine && dice.chance(50),
                gently: part == Part::Worker && dice.chance(20),
            }
        })
        .collect();
    strikes.sort_by_key(|strike| strike.count);
    strikes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan() {
        let options = Options { runs: 50, kills: 3, seed: 5 };
        let plan = Plan::new(options);
        assert_eq!(plan, Plan::new(options));
        assert_ne!(plan, Plan::new(Options { seed: 6, ..options }));
        assert_eq!(plan.runs.len(), 50);
        for part in [Part::Worker, Part::Engine, Part::Server] {
            assert_eq!(plan.strikes.iter().filter(|strike| strike.part == part).count(), 3);
        }
        assert!(plan.strikes.iter().all(|strike| (1..=45).contains(&strike.count)));
    }
}
