//! What is to happen, all of it from one seed: which runs go side by side, and what comes between them and the server
//! when.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::dice::Dice;

/// Runs that are under way at a time.
const SIDE_BY_SIDE: usize = 4;
/// A server that stands still for longer is a server that is away.
const LONGEST_FREEZE: u64 = 20_000;
/// After so many milliseconds clients take what is not answered for lost.
const TIME_OUT: u64 = 60_000;
/// All of the way, as moments count it.
pub(super) const WAY: u64 = 1000;

/// How a test under faults is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many runs.
    pub runs: usize,
    /// How many tasks a run has.
    pub tasks: u64,
    /// The seed of every choice.
    pub seed: u64,
    /// How long a trouble lasts at most; the first time that the server stops takes just as long.
    pub longest: Duration,
}

/// What comes between a run and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Trouble {
    /// The server ends: gently by SIGTERM, else by SIGKILL.
    Stopped { gently: bool },
    /// The server stands still.
    Frozen,
    /// Requests are answered with this status, and perhaps with the seconds after which to ask again. `cut`: the
    /// connections that were open have been cut.
    Unavailable { status: u16, retry_after: Option<u64>, cut: bool },
    /// All connections are cut, so many times.
    Dropped { times: u32 },
    /// Connections are taken, and nothing is answered. `forgotten`: those of that time stay silent afterwards; else they
    /// are cut then.
    Swallowed { forgotten: bool },
    /// Each request is held up for so many milliseconds.
    Slow { millis: u64 },
    /// Calls take effect, but their answers are lost with their connections.
    Lost,
}

impl Trouble {
    /// What it is called.
    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::Stopped { .. } => Kind::Stopped,
            Self::Frozen => Kind::Frozen,
            Self::Unavailable { .. } => Kind::Unavailable,
            Self::Dropped { .. } => Kind::Dropped,
            Self::Swallowed { .. } => Kind::Swallowed,
            Self::Slow { .. } => Kind::Slow,
            Self::Lost => Kind::Lost,
        }
    }
}

/// Troubles by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Stopped,
    Frozen,
    Unavailable,
    Dropped,
    Swallowed,
    Slow,
    Lost,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Frozen => "frozen",
            Self::Unavailable => "unavailable",
            Self::Dropped => "dropped",
            Self::Swallowed => "swallowed",
            Self::Slow => "slow",
            Self::Lost => "lost",
        })
    }
}

/// A trouble and its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Strike {
    pub(super) trouble: Trouble,
    /// After this part of the way, in thousandths of the tasks' bodies.
    pub(super) after: u64,
    /// And how much later, in milliseconds.
    pub(super) delay: u64,
    /// How long it lasts, in milliseconds.
    pub(super) lasts: u64,
}

/// Runs side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wave {
    /// What happens to the server, hence to all of them.
    pub(super) server: Vec<Strike>,
    /// What happens to the line of each; a run without strikes of its own has no proxy before the server.
    pub(super) runs: Vec<Vec<Strike>>,
}

/// All that is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) waves: Vec<Wave>,
}

impl Plan {
    pub(super) fn new(options: Options) -> Self {
        let mut dice = Dice::new(options.seed);
        let longest = u64::try_from(options.longest.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut server = [Kind::Stopped, Kind::Frozen].into_iter().cycle();
        let mut line = Deck::default();
        let mut waves: Vec<Wave> = Vec::new();
        for number in 0..options.runs {
            if number % SIDE_BY_SIDE == 0 {
                let kinds = server.next().into_iter().collect();
                waves.push(Wave { server: strikes(kinds, longest, &mut dice), runs: Vec::new() });
            }
            // One in four has no proxy, so that it finds a server that is away as it is.
            let count = if dice.chance(25) { 0 } else { dice.within(2..4) };
            let kinds = (0..count).filter_map(|_| line.draw(&mut dice)).collect();
            let strikes = strikes(kinds, longest, &mut dice);
            if let Some(wave) = waves.last_mut() {
                wave.runs.push(strikes);
            }
        }
        let mut stops = waves.iter_mut().flat_map(|wave| &mut wave.server);
        if let Some(stop) = stops.find(|strike| strike.trouble.kind() == Kind::Stopped) {
            stop.lasts = longest;
        }
        Self { waves }
    }
}

/// Strikes of these kinds, evenly over the way.
fn strikes(kinds: Vec<Kind>, longest: u64, dice: &mut Dice) -> Vec<Strike> {
    let count = kinds.len() as u64;
    let strike = |(place, kind)| {
        let lasts = match dice.within(0..10) {
            0..5 => dice.within(200..3_000),
            5..8 => dice.within(3_000..15_000),
            _ => dice.within(15_000..60_000),
        };
        let most = if kind == Kind::Frozen { longest.min(LONGEST_FREEZE) } else { longest };
        Strike {
            trouble: trouble(kind, longest, dice),
            // The end of the way is reached too: then the run's end is to be told.
            after: dice.within(WAY * place / count..WAY * (place + 1) / count + 1),
            delay: dice.within(0..400),
            lasts: lasts.min(most),
        }
    };
    (0..).zip(kinds).map(strike).collect()
}

fn trouble(kind: Kind, longest: u64, dice: &mut Dice) -> Trouble {
    match kind {
        Kind::Stopped => Trouble::Stopped { gently: dice.chance(33) },
        Kind::Frozen => Trouble::Frozen,
        Kind::Unavailable => Trouble::Unavailable {
            status: match dice.within(0..4) {
                0 => 429,
                1 => 502,
                _ => 503,
            },
            retry_after: dice.chance(50).then(|| dice.within(1..6)),
            cut: dice.chance(50),
        },
        Kind::Dropped => Trouble::Dropped { times: u32::try_from(dice.within(1..9)).unwrap_or(1) },
        // Who waits for what is forgotten waits for a minute.
        Kind::Swallowed => Trouble::Swallowed { forgotten: dice.chance(50) && longest >= TIME_OUT },
        Kind::Slow => Trouble::Slow { millis: dice.within(200..5_000).min(longest) },
        Kind::Lost => Trouble::Lost,
    }
}

/// Kinds of troubles on a line, in a random order in which each comes as often as the others.
#[derive(Default)]
struct Deck(Vec<Kind>);

impl Deck {
    fn draw(&mut self, dice: &mut Dice) -> Option<Kind> {
        const KINDS: [Kind; 5] = [Kind::Unavailable, Kind::Dropped, Kind::Swallowed, Kind::Slow, Kind::Lost];
        if self.0.is_empty() {
            let order = dice.shuffled(KINDS.len());
            self.0 = order.into_iter().filter_map(|index| KINDS.get(index).copied()).collect();
        }
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options { runs: 20, tasks: 500, seed: 5, longest: Duration::from_mins(1) };

    #[test]
    fn a_seed_has_one_plan() {
        let plan = Plan::new(OPTIONS);
        assert_eq!(plan, Plan::new(OPTIONS));
        assert_ne!(plan, Plan::new(Options { seed: 6, ..OPTIONS }));
        assert_eq!(plan.waves.iter().map(|wave| wave.runs.len()).sum::<usize>(), 20);
    }

    #[test]
    fn every_kind_comes_and_the_server_is_away_for_as_long_as_may_be() {
        let plan = Plan::new(OPTIONS);
        let strikes: Vec<Strike> = plan
            .waves
            .iter()
            .flat_map(|wave| wave.runs.iter().flatten().chain(&wave.server))
            .copied()
            .collect();
        for kind in [
            Kind::Stopped,
            Kind::Frozen,
            Kind::Unavailable,
            Kind::Dropped,
            Kind::Swallowed,
            Kind::Slow,
            Kind::Lost,
        ] {
            assert!(strikes.iter().any(|strike| strike.trouble.kind() == kind), "no strike is {kind}");
        }
        assert!(strikes.iter().all(|strike| strike.lasts <= 60_000 && strike.after <= WAY));
        let full = |strike: &&Strike| strike.trouble.kind() == Kind::Stopped && strike.lasts == 60_000;
        assert!(strikes.iter().any(|strike| full(&strike)));
        for run in plan.waves.iter().flat_map(|wave| &wave.runs) {
            assert!(run.is_sorted_by_key(|strike| strike.after), "strikes come one after the other");
        }
    }

    #[test]
    fn a_short_test_has_short_troubles() {
        let plan = Plan::new(Options { runs: 2, longest: Duration::from_secs(3), ..OPTIONS });
        let mut strikes = plan.waves.iter().flat_map(|wave| wave.runs.iter().flatten().chain(&wave.server));
        assert!(strikes.all(|strike| strike.lasts <= 3_000));
    }
}
