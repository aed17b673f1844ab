//! What may be removed, and why the rest may not.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::FlowRun;
use prefect_api::id::{FlowRunId, WorkPoolId};
use prefect_api::state::StateType;

use crate::launcher::Phase;
use crate::launcher::docker::{Leftover, PulledImage, Purpose, Standing};

/// What becomes of something, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Remove(String),
    Keep(String),
}

/// All that decides, as it was at one moment.
#[derive(Debug)]
pub(super) struct Judge {
    /// The runs that the server has.
    pub(super) runs: HashMap<FlowRunId, FlowRun>,
    /// The containers' work pools, as far as the server has pools of their names.
    pub(super) pools: BTreeMap<String, WorkPoolId>,
    /// The work pools that were asked for by name.
    pub(super) named: Vec<String>,
    /// What is younger stays.
    pub(super) older_than: SignedDuration,
    pub(super) now: Timestamp,
}

impl Judge {
    /// Judges a container. It is removed if it does not run, nobody has to report its end any more, and it is
    /// old enough.
    pub(super) fn container(&self, container: &Leftover) -> Verdict {
        if container.phase == Phase::Running {
            return Verdict::Keep(format!("it is {}", container.state));
        }
        let run = match container.purpose {
            Purpose::Run { id, .. } => self.runs.get(&id),
            Purpose::Companion => None,
        };
        let verdict = match run {
            Some(run) => of_attempt(container, run),
            None if !self.is_of_this_server(container) => Verdict::Keep(
                "its work pool is not on this server: it may belong to another one (if not, name the pool with \
                 --pool)"
                    .to_owned(),
            ),
            None if container.purpose == Purpose::Companion => {
                Verdict::Remove("it was made for the hooks of a run".to_owned())
            }
            None => Verdict::Remove("its run was deleted".to_owned()),
        };
        match verdict {
            Verdict::Remove(_) if self.is_young(container.since) => {
                let event = if container.phase == Phase::Ended { "ended" } else { "was made" };
                Verdict::Keep(format!("it {event} less than {:#} ago", self.older_than))
            }
            verdict => verdict,
        }
    }

    /// Judges an image that a worker has pulled; `None` if there is none any more.
    pub(super) fn image(&self, image: &PulledImage) -> Option<Verdict> {
        let verdict = match &image.standing {
            Standing::Gone => return None,
            Standing::Used(container) => Verdict::Keep(format!("the container {container:?} was made of it")),
            Standing::Parent => Verdict::Keep("another image was made of it".to_owned()),
            Standing::Theirs => Verdict::Keep("all its names were given by others".to_owned()),
            _ if self.is_young(image.last_used) => {
                Verdict::Keep(format!("a job used it less than {:#} ago", self.older_than))
            }
            Standing::Shared(names) => Verdict::Remove(format!(
                "a worker pulled it, and nothing uses it; of its names only {} goes",
                names.join(" and ")
            )),
            Standing::Ours => Verdict::Remove("a worker pulled it, and nothing uses it".to_owned()),
        };
        Some(verdict)
    }

    /// Whether a container comes from this server, which does not know its run. Several servers may share an
    /// engine, and have pools of one name.
    fn is_of_this_server(&self, container: &Leftover) -> bool {
        match (self.pools.get(&container.pool), container.purpose) {
            (Some(known), Purpose::Run { pool, .. }) => pool == Some(*known),
            (Some(_), Purpose::Companion) => true,
            (None, _) => self.named.contains(&container.pool),
        }
    }

    fn is_young(&self, since: Timestamp) -> bool {
        self.now.duration_since(since) < self.older_than
    }
}

/// Whether an attempt that does not run is past: its end is reported.
fn of_attempt(container: &Leftover, run: &FlowRun) -> Verdict {
    let state = run.state_name.as_deref().or(run.state_type.map(StateType::as_str)).unwrap_or("in no state");
    if run.state_type.is_some_and(StateType::is_final) {
        return Verdict::Remove(format!("its run is {state}"));
    }
    match container.phase {
        // It may have been made a moment ago, and the run still name the one before.
        Phase::Created => Verdict::Keep(format!("its run is {state}: a worker may start it yet")),
        _ if is_past(container, run) => Verdict::Remove("its run has another container by now".to_owned()),
        _ => Verdict::Keep(format!("its run is {state}: a worker has to report its end first")),
    }
}

/// Whether a run names another container as its infrastructure. The engine may have been reached at another
/// address when that was stored: only the container's id counts.
fn is_past(container: &Leftover, run: &FlowRun) -> bool {
    let named = run.infrastructure_pid.as_deref().and_then(|pid| pid.rsplit(':').next());
    named.is_some_and(|named| named != container.id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    const POOL: WorkPoolId = WorkPoolId(Uuid::from_u128(1));
    const NOW: &str = "2026-11-25T12:00:00Z";

    fn container(phase: Phase, state: &str, hours_ago: i64) -> Leftover {
        let now: Timestamp = NOW.parse().unwrap();
        Leftover {
            id: "0123".to_owned(),
            name: "owl".to_owned(),
            pool: "pool".to_owned(),
            purpose: Purpose::Run { id: FlowRunId(Uuid::nil()), pool: Some(POOL) },
            phase,
            state: state.to_owned(),
            since: now - SignedDuration::from_hours(hours_ago),
            size: None,
        }
    }

    fn ended(hours_ago: i64) -> Leftover {
        container(Phase::Ended, "exited", hours_ago)
    }

    fn judge(run: Option<(&str, &str)>) -> Judge {
        let run = run.map(|(kind, pid)| {
            let run: FlowRun = serde_json::from_value(json!({
                "id": Uuid::nil(), "name": "n", "flow_id": Uuid::nil(), "state_type": kind, "state_name": kind,
                "infrastructure_pid": (!pid.is_empty()).then_some(pid),
            }))
            .unwrap();
            (run.id, run)
        });
        Judge {
            runs: run.into_iter().collect(),
            pools: BTreeMap::from([("pool".to_owned(), POOL)]),
            named: Vec::new(),
            older_than: SignedDuration::from_hours(24),
            now: NOW.parse().unwrap(),
        }
    }

    #[track_caller]
    fn removes(judge: &Judge, container: &Leftover, why: &str) {
        let Verdict::Remove(reason) = judge.container(container) else { panic!("kept, not {why}") };
        assert!(reason.contains(why), "{reason}");
    }

    #[track_caller]
    fn keeps(judge: &Judge, container: &Leftover, why: &str) {
        let Verdict::Keep(reason) = judge.container(container) else { panic!("removed, though {why}") };
        assert!(reason.contains(why), "{reason}");
    }

    #[test]
    fn what_ended_goes_once_its_run_is_over() {
        for kind in ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"] {
            removes(&judge(Some((kind, "unix:///s:0123"))), &ended(24), kind);
        }
        removes(&judge(None), &ended(24), "deleted");
        for kind in ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING", "NEWER"] {
            keeps(&judge(Some((kind, "unix:///s:0123"))), &ended(1000), "report its end first");
            keeps(&judge(Some((kind, ""))), &ended(1000), "report its end first");
        }
    }

    #[test]
    fn an_attempt_is_past_once_the_run_has_another_container() {
        removes(&judge(Some(("RUNNING", "unix:///s:4567"))), &ended(24), "another container");
        keeps(&judge(Some(("RUNNING", "tcp://elsewhere:2376:0123"))), &ended(24), "report");
        let created = container(Phase::Created, "created", 24);
        keeps(&judge(Some(("PENDING", "unix:///s:4567"))), &created, "start it yet");
        removes(&judge(Some(("CRASHED", "unix:///s:4567"))), &created, "CRASHED");
    }

    #[test]
    fn what_is_young_stays() {
        keeps(&judge(Some(("COMPLETED", "s:0123"))), &ended(23), "less than 24h ago");
        keeps(&judge(None), &container(Phase::Created, "created", 23), "was made less than");
        let companion = Leftover { purpose: Purpose::Companion, ..ended(23) };
        keeps(&judge(None), &companion, "less than");
        removes(
            &judge(None),
            &Leftover {
                since: NOW.parse::<Timestamp>().unwrap() - SignedDuration::from_hours(24),
                ..companion
            },
            "hooks",
        );
    }

    #[test]
    fn what_does_not_stand_still_stays_whatever_the_server_says() {
        for state in ["running", "paused", "restarting", "removing"] {
            let running = container(Phase::Running, state, 1000);
            keeps(&judge(None), &running, state);
            keeps(&judge(Some(("COMPLETED", "s:0123"))), &running, state);
            keeps(&judge(None), &Leftover { purpose: Purpose::Companion, ..running }, state);
        }
    }

    #[test]
    fn an_image_goes_if_nothing_uses_it_and_it_is_old() {
        let judge = judge(None);
        let image = |standing, hours| PulledImage {
            id: "sha256:1".to_owned(),
            references: ["r/a:1".to_owned()].into(),
            last_used: judge.now - SignedDuration::from_hours(hours),
            standing,
            size: None,
        };
        let verdict = |standing, hours| judge.image(&image(standing, hours));
        assert!(matches!(verdict(Standing::Ours, 24), Some(Verdict::Remove(_))));
        let shared = || Standing::Shared(vec!["r/a:1".to_owned()]);
        let Some(Verdict::Remove(reason)) = verdict(shared(), 24) else { panic!("our name stays") };
        assert!(reason.contains("only r/a:1 goes"), "{reason}");
        assert_eq!(verdict(Standing::Gone, 1000), None);
        for (standing, hours) in [
            (Standing::Ours, 23),
            (shared(), 23),
            (Standing::Used("owl".to_owned()), 1000),
            (Standing::Parent, 1000),
            (Standing::Theirs, 1000),
        ] {
            assert!(matches!(verdict(standing.clone(), hours), Some(Verdict::Keep(_))), "{standing:?}");
        }
    }

    #[test]
    fn what_another_server_may_know_stays() {
        let of_other = WorkPoolId(Uuid::from_u128(2));
        for pool in [Some(of_other), None] {
            let purpose = Purpose::Run { id: FlowRunId(Uuid::nil()), pool };
            let foreign = Leftover { purpose, ..ended(1000) };
            keeps(&judge(None), &foreign, "another one");
            removes(&judge(Some(("COMPLETED", "s:0123"))), &foreign, "COMPLETED");
            let named = Judge { named: vec!["pool".to_owned()], ..judge(None) };
            keeps(&named, &foreign, "another one");
            let renamed = Judge { pools: BTreeMap::new(), ..named };
            removes(&renamed, &foreign, "deleted");
        }
        let companion = Leftover { purpose: Purpose::Companion, pool: "else".to_owned(), ..ended(1000) };
        keeps(&judge(None), &companion, "another one");
        removes(&Judge { named: vec!["else".to_owned()], ..judge(None) }, &companion, "hooks");
    }
}
