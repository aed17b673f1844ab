//! What became of it, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::plan::{Kind, Options, Strike};
use super::verdict::{Evidence, Fault};
use crate::compare::{Difference, leaves};
use crate::fault::now;

/// Differences of a run that a text shows.
const SHOWN: usize = 20;

/// A strike, and when it was: milliseconds of the Unix time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Struck {
    #[serde(flatten)]
    strike: Strike,
    /// The run whose line it was on; all of those under way if it was on the server.
    run: Option<usize>,
    began_at: u128,
    /// Absent if the run was over before.
    ended_at: Option<u128>,
}

impl Struck {
    pub(super) fn begin(strike: Strike, run: Option<usize>) -> Self {
        Self { strike, run, began_at: now(), ended_at: None }
    }

    pub(super) fn end(&mut self) {
        self.ended_at = Some(now());
    }

    /// As a line for a terminal.
    pub(super) fn text(&self) -> String {
        let Strike { trouble, after, lasts, .. } = &self.strike;
        let on = self.run.map_or_else(|| "server".to_owned(), |run| format!("run {run}"));
        format!("{on}: {trouble:?} for {lasts} ms after {after}/1000 of the way")
    }
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
    /// How its process ended.
    pub exit: Option<String>,
    /// Bodies of tasks that were not executed once, and how often they were.
    pub executions: BTreeMap<String, usize>,
    /// Where the server's record differs from the undisturbed one without an explanation.
    pub differences: Vec<Difference>,
    /// The troubles of its line.
    pub(super) strikes: Vec<Struck>,
    /// The end of its process's output.
    pub said: String,
}

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The seed that gives the same plan again.
    pub seed: u64,
    /// How many runs there were, the undisturbed one not counted.
    pub runs: usize,
    /// How many tasks each has.
    pub tasks: u64,
    /// Values that the server holds of the undisturbed run: what was compared.
    pub values: usize,
    /// How often each trouble came.
    pub(super) troubles: BTreeMap<Kind, usize>,
    /// Runs of which the server holds something else.
    pub different: usize,
    /// Runs that lack something.
    pub lost: usize,
    /// Runs that did something twice, or of which the server holds too much.
    pub doubled: usize,
    /// Runs whose process failed.
    pub failed: usize,
    /// Runs that never ended.
    pub stuck: usize,
    /// Slots of concurrency limits that nobody gives back any more.
    pub leaked_slots: u64,
    /// Differences that have an explanation, by it.
    pub explained: BTreeMap<&'static str, usize>,
    /// The highest resident memory of the undisturbed run's process, in bytes.
    pub undisturbed_rss_peak: u64,
    /// The highest of all other runs.
    pub rss_peak: u64,
    /// Seconds that the undisturbed run took, with the reading of its records.
    pub undisturbed_seconds: f64,
    /// Seconds that all of it took.
    pub seconds: f64,
    /// Runs with something wrong.
    pub offenders: Vec<Offender>,
    /// What happened when.
    pub(super) strikes: Vec<Struck>,
}

impl Report {
    pub(super) fn new(options: Options, record: &Value, rss_peak: u64, took: Duration) -> Self {
        Self {
            ok: false,
            seed: options.seed,
            runs: 0,
            tasks: options.tasks,
            values: leaves(record),
            troubles: BTreeMap::new(),
            different: 0,
            lost: 0,
            doubled: 0,
            failed: 0,
            stuck: 0,
            leaked_slots: 0,
            explained: BTreeMap::new(),
            undisturbed_rss_peak: rss_peak,
            rss_peak: 0,
            undisturbed_seconds: took.as_secs_f64(),
            seconds: 0.0,
            offenders: Vec::new(),
            strikes: Vec::new(),
        }
    }

    pub(super) fn struck(&mut self, strikes: Vec<Struck>) {
        for struck in &strikes {
            *self.troubles.entry(struck.strike.trouble.kind()).or_default() += 1;
        }
        self.strikes.extend(strikes);
    }

    /// Adds a run.
    pub(super) fn add(&mut self, evidence: &Evidence<'_>) {
        let (findings, played) = (evidence.findings(), &evidence.played);
        let faults = evidence.faults(&findings.unexplained);
        self.runs += 1;
        self.rss_peak = self.rss_peak.max(played.rss_peak);
        self.struck(played.strikes.clone());
        for explained in &findings.explanations {
            *self.explained.entry(explained.explanation).or_default() += explained.differences.len();
        }
        for fault in &faults {
            *match fault {
                Fault::Stuck => &mut self.stuck,
                Fault::Failed => &mut self.failed,
                Fault::Lost => &mut self.lost,
                Fault::Doubled => &mut self.doubled,
                Fault::Different => &mut self.different,
            } += 1;
        }
        if !faults.is_empty() {
            self.offenders.push(Offender {
                run: played.run.to_string(),
                number: evidence.number,
                faults,
                exit: played.exit.map(|exit| exit.to_string()),
                executions: evidence.odd_executions(),
                differences: findings.unexplained,
                strikes: played.strikes.clone(),
                said: played.said.clone(),
            });
        }
    }

    /// So many slots are still taken after a wave.
    pub(super) fn leaked(&mut self, slots: u64) {
        // Those of earlier waves are among them.
        self.leaked_slots = slots;
    }

    /// Nothing more comes.
    pub(super) fn close(&mut self, took: Duration) {
        self.seconds = took.as_secs_f64();
        self.ok = self.offenders.is_empty() && self.leaked_slots == 0;
    }

    /// As text for a terminal.
    pub fn text(&self) -> String {
        let Self { seed, runs, tasks, values, different, lost, doubled, failed, stuck, .. } = self;
        let troubles: Vec<String> =
            self.troubles.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let mut text = format!(
            "seed {seed}: {runs} runs of {tasks} tasks in {:.0} s (undisturbed {:.0} s), troubles: {}\n\
             {values} values compared: different {different}, lost {lost}, doubled {doubled}, failed {failed}, \
             stuck {stuck}, slots leaked {}\n\
             memory at most {} KiB (undisturbed {} KiB)\n",
            self.seconds,
            self.undisturbed_seconds,
            troubles.join(", "),
            self.leaked_slots,
            self.rss_peak / 1024,
            self.undisturbed_rss_peak / 1024,
        );
        let mut line = |line: String| text.extend([line.as_str(), "\n"]);
        for (explanation, count) in &self.explained {
            line(format!("  {count:>3} x {explanation}"));
        }
        for offender in &self.offenders {
            let Offender { run, number, faults, exit, executions, differences, strikes, said } = offender;
            line(format!("\n{run} (number {number}) {faults:?}: {}", exit.as_deref().unwrap_or("no end")));
            for strike in strikes {
                line(format!("  {}", strike.text()));
            }
            for (body, count) in executions {
                line(format!("  {count} times {body}"));
            }
            for Difference { path, reference, ours, .. } in differences.iter().take(SHOWN) {
                line(format!("  {path}\n    undisturbed: {reference}\n    here:        {ours}"));
            }
            if differences.len() > SHOWN {
                line(format!("  and {} more differences", differences.len() - SHOWN));
            }
            line(format!("  its process said last:\n{said}"));
        }
        text
    }
}
