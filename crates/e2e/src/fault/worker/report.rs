//! What became of it, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::plan::{Options, Part, Strike};
use crate::puppet::Witness;

/// A strike, and when it was: milliseconds of the Unix time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Struck {
    #[serde(flatten)]
    pub(super) strike: Strike,
    pub(super) killed_at: u128,
    pub(super) back_at: u128,
}

/// What is wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Its program was never started, though nobody cancelled it.
    Lost,
    /// It is in no final state.
    Stuck,
    /// Its program was started twice.
    Doubled,
    /// It is in a final state that does not tell what happened.
    Wrong,
    /// Its container is still there, though it must not be.
    Leaked,
}

/// A container, as the engine tells it in the end.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerEnd {
    /// Its id.
    pub id: String,
    /// Its status in the engine's words.
    pub status: String,
    /// Its exit code.
    pub exit_code: Option<i64>,
    /// When it was started.
    pub started_at: String,
    /// When it ended.
    pub finished_at: String,
}

/// A run with something wrong, and all that is known of it.
#[derive(Clone, Debug, Serialize)]
pub struct Offender {
    /// The run's id.
    pub run: String,
    /// Its number in the plan.
    pub number: usize,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What its program was told.
    pub command: String,
    /// How it was cancelled, if it was, and whether the server took that.
    pub cancelled: Option<String>,
    /// Whether the worker was to remove its container.
    pub auto_remove: bool,
    /// Whether its deployment has a concurrency limit.
    pub limited: bool,
    /// Its states: time, name, message.
    pub states: Vec<String>,
    /// What its program said.
    pub witness: Witness,
    /// Its containers that are still there.
    pub containers: Vec<ContainerEnd>,
}

/// What was counted.
pub(super) struct Facts {
    pub(super) cancelled: usize,
    pub(super) states: BTreeMap<String, usize>,
    pub(super) slots: u32,
    pub(super) gave_up: Vec<String>,
    pub(super) took: Duration,
}

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The seed that gives the same plan again.
    pub seed: u64,
    /// How many runs there were.
    pub runs: usize,
    /// How many of them somebody tried to cancel.
    pub cancelled: usize,
    /// How many ended in which state.
    pub states: BTreeMap<String, usize>,
    /// How often which part was killed.
    pub(super) kills: BTreeMap<Part, usize>,
    /// Runs whose program was never started.
    pub lost: usize,
    /// Runs in no final state.
    pub stuck: usize,
    /// Runs whose program was started more than once.
    pub doubled: usize,
    /// Runs in a wrong final state.
    pub wrong: usize,
    /// Containers that must not be there, and concurrency slots that nobody gave back.
    pub leaked: usize,
    /// Of these, the slots.
    pub leaked_slots: u32,
    /// The ends of the worker's log whenever it ended by itself.
    pub gave_up: Vec<String>,
    /// Seconds from the first run's creation until all was settled.
    pub seconds: f64,
    /// Runs with something wrong.
    pub offenders: Vec<Offender>,
    /// What was killed when.
    pub(super) strikes: Vec<Struck>,
}

impl Report {
    pub(super) fn new(
        options: Options,
        facts: Facts,
        offenders: Vec<Offender>,
        strikes: Vec<Struck>,
    ) -> Self {
        let count = |fault| offenders.iter().filter(|offender| offender.faults.contains(&fault)).count();
        let mut kills = BTreeMap::new();
        for struck in &strikes {
            *kills.entry(struck.strike.part).or_default() += 1;
        }
        let slots = usize::try_from(facts.slots).unwrap_or(usize::MAX);
        Self {
            ok: offenders.is_empty() && slots == 0 && facts.gave_up.is_empty(),
            seed: options.seed,
            runs: options.runs,
            cancelled: facts.cancelled,
            states: facts.states,
            kills,
            lost: count(Fault::Lost),
            stuck: count(Fault::Stuck),
            doubled: count(Fault::Doubled),
            wrong: count(Fault::Wrong),
            leaked: count(Fault::Leaked).saturating_add(slots),
            leaked_slots: facts.slots,
            gave_up: facts.gave_up,
            seconds: facts.took.as_secs_f64(),
            offenders,
            strikes,
        }
    }

    /// As text for a terminal.
    pub fn text(&self) -> String {
        let Self { seed, runs, lost, stuck, doubled, wrong, leaked, leaked_slots, .. } = self;
        let kills: Vec<String> = self.kills.iter().map(|(part, count)| format!("{part} {count}")).collect();
        let states: Vec<String> =
            self.states.iter().map(|(state, count)| format!("{state} {count}")).collect();
        let mut text = format!(
            "seed {seed}: {runs} runs in {:.0} s, kills: {}, ends: {}\n\
             lost {lost}, stuck {stuck}, doubled {doubled}, wrong {wrong}, leaked {leaked} \
             (slots {leaked_slots}), worker gave up {} times\n",
            self.seconds,
            kills.join(", "),
            states.join(", "),
            self.gave_up.len()
        );
        for offender in &self.offenders {
            let Offender { run, number, faults, command, cancelled, .. } = offender;
            let mut line = |line: String| text.extend([line.as_str(), "\n"]);
            line(format!("\n{run} (number {number}) {faults:?}: {command}"));
            if let Some(cancelled) = cancelled {
                line(format!("  cancelled: {cancelled}"));
            }
            offender.states.iter().for_each(|state| line(format!("  state {state}")));
            offender.containers.iter().for_each(|container| line(format!("  {container:?}")));
            line(format!("  {:?}", offender.witness));
        }
        text
    }
}
