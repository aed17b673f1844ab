//! Compares what is there with what the server believes: after a restart, and now and then.
//!
//! - Infrastructure of this pool that nobody watches is adopted: also if it has ended, for then its end was
//!   perhaps not reported. The infrastructure is the record; nothing else has to survive a worker.
//! - A run that was claimed here and has no infrastructure goes back to the queue; one that should be running
//!   and has none has crashed.
//!
//! A pool is known by its id, not by its name: workers of several servers may share an engine.
//!
//! What a worker that is alive has in its hands is left to it. A worker of the same name is this one in a
//! former life. Another is alive while the server hears its heartbeats. Should two ever watch the same
//! infrastructure, then they report the same end twice, and the server takes it once.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::FlowRun;
use prefect_api::id::FlowRunId;
use prefect_api::state::StateType;
use prefect_api::work_pool::WorkerRecord;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::claim::{self, Fingerprint};
use crate::error::{Error, chain};
use crate::launcher::{Found, Phase, is_same};
use crate::runs::{self, PAGE};
use crate::shutdown::Shutdown;
use crate::status::RunPhase;
use crate::unit::{Shared, Unit};

/// Label of a run: the place where its infrastructure is.
pub(crate) const PLACE_LABEL: &str = "ferryman.place";
/// Time between two looks at the infrastructure.
const LOOK: Duration = Duration::from_mins(1);
/// Every so many looks the server's runs are looked at as well, whatever the infrastructure says.
const WHOLE_LOOK: u32 = 5;
/// Pause before a failed look is tried again; doubled each time up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(1);
/// What somebody did to a run less than this ago he may still be about: a worker of the same name may not have
/// ended yet.
const YOUNG: SignedDuration = SignedDuration::from_secs(30);

/// Infrastructure to take over, and its run.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) found: Found,
    pub(crate) run: FlowRun,
}

/// Looks for what was left behind.
pub(crate) struct Reconciler {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: String,
    pub(crate) in_flight: watch::Receiver<BTreeSet<FlowRunId>>,
    pub(crate) adoptions: mpsc::Sender<Adoption>,
    pub(crate) shutdown: Shutdown,
    /// Infrastructure whose end is reported, as far as we know.
    pub(crate) settled: HashSet<String>,
}

impl Reconciler {
    /// Looks until `stop`; tells `done` after the first look that succeeded.
    pub(crate) async fn run(mut self, done: oneshot::Sender<()>, stop: CancellationToken) {
        let mut done = Some(done);
        let mut looks = 0_u32;
        let mut retry = RETRY;
        let mut left_for_later = false;
        loop {
            let whole = left_for_later || looks.is_multiple_of(WHOLE_LOOK);
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                looked = self.look(whole) => looked,
            };
            let pause = match looked {
                Ok(later) => {
                    self.shared.metrics.reconciled(&self.pool);
                    left_for_later = later;
                    looks = looks.wrapping_add(1);
                    retry = RETRY;
                    if done.take().is_some_and(|done| done.send(()).is_err()) {
                        // Nobody waits any more: the worker stops.
                        return;
                    }
                    if later { LOOK / 2 } else { LOOK }
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "could not look for what was left behind, trying again"
                    );
                    retry = (retry * 2).min(LOOK);
                    retry
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One look; tells whether something was left for a later one.
    async fn look(&mut self, whole: bool) -> Result<bool, Error> {
        if let Some(engine) = self.shared.launcher.check().await? {
            self.shared.board.board().set_engine(&engine);
        }
        let mut found = self.shared.launcher.list(&self.pool).await?;
        // Another server may have a pool of this name, and its workers share our engine.
        let ours = self.shared.pool.borrow().record.id;
        found.retain(|found| found.attempt.work_pool_id == Some(ours));
        let there: HashSet<&str> = found.iter().map(|found| found.infrastructure.id.as_str()).collect();
        self.settled.retain(|id| there.contains(id.as_str()));
        let unwatched = |found: &&Found| {
            !self.settled.contains(&found.infrastructure.id)
                && !self.in_flight.borrow().contains(&found.attempt.flow_run_id)
        };
        let mut left: Vec<Found> = found.iter().filter(unwatched).cloned().collect();
        if left.is_empty() && !whole {
            return Ok(false);
        }
        let unfinished = if whole { self.unfinished_runs().await? } else { Vec::new() };
        let owners = self.owners(&left, &unfinished).await?;
        left.retain(|found| !owners.is_alive(&found.attempt.worker));
        // Of several attempts the one that runs is the present one.
        left.sort_by_key(|found| found.phase != Phase::Running);

        let ids = left.iter().map(|found| found.attempt.flow_run_id).collect();
        let runs = runs::read(&self.shared.client, ids).await?;
        let now = Timestamp::now();
        let mut later = false;
        for found in left {
            let run = runs.get(&found.attempt.flow_run_id);
            match next_step(&found, run, now) {
                Step::Nothing => {
                    self.settled.insert(found.infrastructure.id);
                }
                Step::Later => later = true,
                Step::Tidy => {
                    self.shared.launcher.tidy(&found.infrastructure).await?;
                    self.settled.insert(found.infrastructure.id);
                }
                Step::Discard => self.shared.launcher.discard(&found.infrastructure).await?,
                Step::Adopt(run) => {
                    if self.adoptions.send(Adoption { found, run: *run }).await.is_err() {
                        return Ok(false);
                    }
                }
            }
        }
        for run in unfinished {
            let watched = self.in_flight.borrow().contains(&run.id);
            if watched || is_here(&run, &found) || !owners.has(&run, self.shared.launcher.place()) {
                continue;
            }
            if run.state_type == Some(StateType::Pending) && is_young(&run, now) {
                later = true;
            } else {
                self.conclude(run).await;
            }
        }
        Ok(later)
    }

    /// Runs of the pool that the server takes for claimed or running.
    async fn unfinished_runs(&self) -> Result<Vec<FlowRun>, Error> {
        let mut runs = Vec::new();
        loop {
            let filter = json!({
                "work_pools": {"name": {"any_": [self.pool]}},
                "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
                "sort": "ID_DESC", "limit": PAGE, "offset": runs.len(),
            });
            let page = self.shared.client.filter_flow_runs(&filter).await?;
            let last = page.len() < PAGE;
            runs.extend(page);
            if last {
                return Ok(runs);
            }
        }
    }

    /// Who of the others is alive. Asked only if there is anything of others at all.
    async fn owners(&self, left: &[Found], unfinished: &[FlowRun]) -> Result<Owners, Error> {
        let us = &self.shared.worker;
        let of_others = left.iter().any(|found| found.attempt.worker != *us)
            || unfinished
                .iter()
                .any(|run| !self.shared.fingerprint.made(claim::of_run(run).unwrap_or_default()));
        let workers = if of_others { self.shared.client.read_workers(&self.pool).await? } else { Vec::new() };
        Ok(Owners::new(&self.pool, us, workers))
    }

    /// Ends what has no infrastructure: a claim that came to nothing, or a run whose infrastructure is gone.
    async fn conclude(&self, run: FlowRun) {
        let id = run.id;
        let entry = self.shared.board.run(id, &run.name, RunPhase::Ending);
        let unit = Unit {
            shared: Arc::clone(&self.shared),
            run,
            cancel: CancellationToken::new(),
            shutdown: self.shutdown.clone(),
            entry,
        };
        tracing::info!(flow_run.id = %id, "found a run without its infrastructure");
        unit.conclude().await;
    }
}

/// What to do about infrastructure that nobody watches.
enum Step {
    Nothing,
    /// Somebody may be about to do it.
    Later,
    /// It never ran and will not.
    Discard,
    /// Its end is known; whoever reported that may have died before he removed it.
    Tidy,
    Adopt(Box<FlowRun>),
}

fn next_step(found: &Found, run: Option<&FlowRun>, now: Timestamp) -> Step {
    let Some(run) = run else {
        // Deleted by somebody, and with it whatever there was to report.
        return match found.phase {
            Phase::Created => Step::Discard,
            Phase::Running => Step::Nothing,
            Phase::Ended => Step::Tidy,
        };
    };
    let over = run.state_type.is_some_and(StateType::is_final);
    let another =
        run.infrastructure_pid.as_deref().is_some_and(|pid| !is_same(pid, &found.infrastructure.pid));
    match found.phase {
        Phase::Created if is_young(run, now) => Step::Later,
        Phase::Created if over => Step::Discard,
        Phase::Ended if over || another => Step::Tidy,
        // Running although the run is over: somebody has to see its end.
        Phase::Created | Phase::Running | Phase::Ended => Step::Adopt(Box::new(run.clone())),
    }
}

fn is_young(run: &FlowRun, now: Timestamp) -> bool {
    run.state.as_ref().is_some_and(|state| now.duration_since(state.timestamp) < YOUNG)
}

/// Whether infrastructure for the run's present attempt exists on this place.
fn is_here(run: &FlowRun, found: &[Found]) -> bool {
    let state = claim::of_run(run);
    found.iter().any(|found| {
        found.attempt.flow_run_id == run.id
            && (run.infrastructure_pid.as_deref().is_some_and(|pid| is_same(pid, &found.infrastructure.pid))
                || state.is_some_and(|state| found.attempt.proposals.contains(&state)))
    })
}

/// Whose claims are ours to conclude.
struct Owners {
    us: (String, Fingerprint),
    alive: HashSet<String>,
    dead: Vec<(String, Fingerprint)>,
}

impl Owners {
    fn new(pool: &str, us: &str, workers: Vec<WorkerRecord>) -> Self {
        let now = Timestamp::now();
        let (alive, dead): (Vec<_>, Vec<_>) =
            workers.into_iter().filter(|worker| worker.name != us).partition(|worker| hears(worker, now));
        Self {
            us: named(pool, us.to_owned()),
            alive: alive.into_iter().map(|worker| worker.name).collect(),
            dead: dead.into_iter().map(|worker| named(pool, worker.name)).collect(),
        }
    }

    fn is_alive(&self, worker: &str) -> bool {
        self.alive.contains(worker)
    }

    /// Whether a run was claimed by us in a former life, or by a dead worker, and its infrastructure, if it
    /// has any, would be on `place`.
    fn has(&self, run: &FlowRun, place: &str) -> bool {
        let label = |name: &str| run.labels.get(name).and_then(Value::as_str);
        let here = match (label(PLACE_LABEL), run.state_type) {
            (Some(there), _) => there == place,
            // Claimed and not even labelled: there was no infrastructure yet.
            (None, state) => state == Some(StateType::Pending),
        };
        let mut gone = std::iter::once(&self.us).chain(&self.dead);
        here && match run.state_type {
            Some(StateType::Pending) => {
                claim::of_run(run).is_some_and(|claim| gone.any(|(_, fingerprint)| fingerprint.made(claim)))
            }
            _ => label("prefect.worker.name").is_some_and(|name| gone.any(|(gone, _)| gone == name)),
        }
    }
}

fn named(pool: &str, worker: String) -> (String, Fingerprint) {
    let fingerprint = Fingerprint::of(pool, &worker);
    (worker, fingerprint)
}

/// Whether the server hears a worker: three heartbeats may be missing (contract §2.4).
fn hears(worker: &WorkerRecord, now: Timestamp) -> bool {
    let interval = worker.heartbeat_interval_seconds.unwrap_or(30).clamp(1, 86_400);
    let silence = worker.last_heartbeat_time.map(|last| now.duration_since(last));
    silence.is_some_and(|silence| silence <= SignedDuration::from_secs(interval * 3))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::launcher::{Attempt, Infrastructure};

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn worker(name: &str, seconds_ago: i64) -> WorkerRecord {
        let last = NOW.parse::<Timestamp>().unwrap() - SignedDuration::from_secs(seconds_ago);
        serde_json::from_value(
            json!({"name": name, "last_heartbeat_time": last, "heartbeat_interval_seconds": 30}),
        )
        .unwrap()
    }

    fn run(kind: &str, claim: Uuid, labels: &Value, pid: Option<&str>) -> FlowRun {
        serde_json::from_value(json!({
            "id": Uuid::nil(), "name": "n", "flow_id": Uuid::nil(), "infrastructure_pid": pid, "labels": labels,
            "state_type": kind, "state": {
                "id": Uuid::nil(), "type": kind, "timestamp": NOW, "state_details": {"transition_id": claim},
            },
        }))
        .unwrap()
    }

    fn found(phase: Phase, pid: &str, claim: Uuid) -> Found {
        let mut attempt = Attempt::new(FlowRunId(Uuid::nil()), "pool", "us");
        attempt.proposals = vec![claim];
        Found { infrastructure: Infrastructure::new("c", "n", pid), attempt, phase }
    }

    #[test]
    fn a_worker_is_alive_for_three_heartbeats() {
        let now = NOW.parse().unwrap();
        assert!(hears(&worker("w", 90), now));
        assert!(!hears(&worker("w", 91), now));
        assert!(!hears(&serde_json::from_value(json!({"name": "w"})).unwrap(), now));
    }

    #[test]
    fn only_claims_of_the_dead_are_concluded_and_only_on_their_place() {
        let mut owners = Owners::new("pool", "us", Vec::new());
        owners.dead.push(("dead".to_owned(), Fingerprint::of("pool", "dead")));
        let claim = |name: &str| Fingerprint::of("pool", name).claim();
        let labels = |name: &str, place: &str| json!({"prefect.worker.name": name, PLACE_LABEL: place});
        for (expected, run) in [
            (true, run("PENDING", claim("us"), &json!({}), None)),
            (true, run("PENDING", claim("dead"), &labels("dead", "here"), None)),
            (false, run("PENDING", claim("us"), &labels("us", "there"), None)),
            (false, run("PENDING", claim("alive"), &json!({}), None)),
            (false, run("PENDING", Uuid::new_v4(), &labels("us", "here"), None)),
            (true, run("RUNNING", Uuid::new_v4(), &labels("us", "here"), None)),
            (true, run("CANCELLING", Uuid::new_v4(), &labels("dead", "here"), None)),
            (false, run("RUNNING", Uuid::new_v4(), &labels("us", "there"), None)),
            (false, run("RUNNING", Uuid::new_v4(), &labels("alive", "here"), None)),
            (false, run("RUNNING", Uuid::new_v4(), &json!({"prefect.worker.name": "us"}), None)),
        ] {
            assert_eq!(owners.has(&run, "here"), expected, "{run:?}");
        }
    }

    #[test]
    fn infrastructure_of_an_earlier_attempt_is_not_that_of_the_present_one() {
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let claimed_again = run("PENDING", second, &json!({}), Some("old"));
        assert!(!is_here(&claimed_again, &[found(Phase::Ended, "older", first)]));
        assert!(is_here(&claimed_again, &[found(Phase::Created, "new", second)]));
        let running = run("RUNNING", Uuid::nil(), &json!({}), Some("pid"));
        assert!(is_here(&running, &[found(Phase::Running, "pid", first)]));
    }

    #[test]
    fn ended_infrastructure_is_settled_by_a_final_state_and_running_never_is() {
        let claim = Uuid::from_u128(1);
        let at = |kind: &str| run(kind, claim, &json!({}), Some("pid"));
        let step = |phase, pid, run: Option<&FlowRun>| {
            let now = NOW.parse::<Timestamp>().unwrap() + YOUNG;
            match next_step(&found(phase, pid, claim), run, now) {
                Step::Nothing => "nothing",
                Step::Later => "later",
                Step::Tidy => "tidy",
                Step::Discard => "discard",
                Step::Adopt(_) => "adopt",
            }
        };
        assert_eq!(step(Phase::Ended, "pid", Some(&at("COMPLETED"))), "tidy");
        assert_eq!(step(Phase::Ended, "pid", Some(&at("RUNNING"))), "adopt");
        assert_eq!(step(Phase::Ended, "old", Some(&at("RUNNING"))), "tidy");
        assert_eq!(step(Phase::Running, "pid", Some(&at("CANCELLED"))), "adopt");
        assert_eq!(step(Phase::Created, "pid", Some(&at("PENDING"))), "adopt");
        assert_eq!(step(Phase::Created, "pid", Some(&at("CRASHED"))), "discard");
        assert_eq!(step(Phase::Created, "pid", None), "discard");
        assert_eq!(step(Phase::Ended, "pid", None), "tidy");
        assert_eq!(step(Phase::Running, "pid", None), "nothing");
        let young =
            next_step(&found(Phase::Created, "pid", claim), Some(&at("PENDING")), NOW.parse().unwrap());
        assert!(matches!(young, Step::Later));
    }
}
