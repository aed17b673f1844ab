//! Whether the worker is well: what `/livez`, `/readyz`, `/health` and `prefect-worker healthcheck` tell.

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use prefect_client::Client;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::chain;
use crate::launcher::Launcher;
use crate::status::{State, Status, StatusBoard};

/// Polls that may be missed before the worker counts as ill; the Python worker's number.
const MISSED_POLLS: f64 = 30.0;
/// How long server and engine have for an answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long an answer of theirs is believed, so that probes do not become load.
const BELIEVED: Duration = Duration::from_secs(5);

/// What was looked at, and whether all of it is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether all of it is well.
    pub ok: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `loops`, `state`, `polls`, `api` or `engine`.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

impl Check {
    fn new(name: &str, found: Result<String, String>) -> Self {
        let ok = found.is_ok();
        let (Ok(detail) | Err(detail)) = found;
        Self { name: name.to_owned(), ok, detail }
    }
}

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        Self { ok: checks.iter().all(|check| check.ok), checks }
    }

    /// What is not well, in one line.
    pub fn problems(&self) -> String {
        let bad = self.checks.iter().filter(|check| !check.ok);
        bad.map(|check| format!("{}: {}", check.name, check.detail)).collect::<Vec<_>>().join("; ")
    }
}

/// Looks whether the worker is well. Cheap to clone; clones share what they have learnt.
#[derive(Debug, Clone)]
pub struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    status: StatusBoard,
    client: Client,
    launchers: StdMutex<Vec<Arc<dyn Launcher>>>,
    /// Held while server and engine are asked: whoever comes meanwhile shares the answer.
    outside: Mutex<Option<(Instant, Vec<Check>)>>,
}

impl Health {
    /// The health of the worker that writes on this board.
    pub fn new(status: StatusBoard, client: Client) -> Self {
        let shared = Shared { status, client, launchers: StdMutex::default(), outside: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// From now on the worker needs this launcher too.
    pub fn needs(&self, launcher: Arc<dyn Launcher>) {
        self.shared.launchers.lock().unwrap_or_else(PoisonError::into_inner).push(launcher);
    }

    /// Whether the process does its work: its loops go round. A worker that is not live has to be restarted.
    pub fn live(&self) -> Report {
        Report::of(vec![loops(&self.shared.status.snapshot())])
    }

    /// Whether the pools are polled; all that the Python worker looks at.
    pub fn polling(&self) -> Report {
        Report::of(vec![polls(&self.shared.status.snapshot())])
    }

    /// Whether the process can do its work: it is live, polls, and reaches server and engine. Draining is no
    /// illness.
    pub async fn well(&self) -> Report {
        let status = self.shared.status.snapshot();
        let mut checks = vec![loops(&status), polls(&status)];
        checks.extend(self.outside().await);
        Report::of(checks)
    }

    /// Whether the process takes runs: it is well, and neither starting nor leaving.
    pub async fn ready(&self) -> Report {
        let mut checks = vec![state(&self.shared.status.snapshot())];
        checks.extend(self.well().await.checks);
        Report::of(checks)
    }

    async fn outside(&self) -> Vec<Check> {
        let mut known = self.shared.outside.lock().await;
        if let Some((since, checks)) = known.as_ref()
            && since.elapsed() < BELIEVED
        {
            return checks.clone();
        }
        let launchers = self.shared.launchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let engines = futures_util::future::join_all(launchers.iter().map(|launcher| async {
            let answer = tokio::time::timeout(DEADLINE, launcher.check()).await;
            if let Ok(Ok(Some(engine))) = &answer {
                self.shared.status.set_engine(engine);
            }
            Check::new("engine", told(answer.map(|answer| answer.map(drop).map_err(|error| chain(&error)))))
        }));
        let api = async {
            let answer = tokio::time::timeout(DEADLINE, self.shared.client.health()).await;
            Check::new("api", told(answer.map(|answer| answer.map_err(|error| chain(&error)))))
        };
        let (api, engines) = tokio::join!(api, engines);
        let checks: Vec<Check> = std::iter::once(api).chain(engines).collect();
        *known = Some((Instant::now(), checks.clone()));
        checks
    }
}

fn told(answer: Result<Result<(), String>, tokio::time::error::Elapsed>) -> Result<String, String> {
    match answer {
        Ok(Ok(())) => Ok("it answers".to_owned()),
        Ok(Err(error)) => Err(format!("failed to {error}")),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

fn state(status: &Status) -> Check {
    let name = status.state.name().to_owned();
    Check::new("state", if status.state == State::Running { Ok(name) } else { Err(name) })
}

fn loops(status: &Status) -> Check {
    // A worker that stops ends its loops.
    let leaving = status.state == State::Stopping;
    let dead: Vec<&str> =
        status.loops.iter().filter(|entry| !entry.alive).map(|entry| entry.name.as_str()).collect();
    Check::new(
        "loops",
        if dead.is_empty() || leaving {
            Ok(format!("{} going round", status.loops.len()))
        } else {
            Err(format!("ended or stuck: {}", dead.join(", ")))
        },
    )
}

fn polls(status: &Status) -> Check {
    let leaving = matches!(status.state, State::Draining | State::Stopping);
    let late: Vec<String> = status
        .pools
        .iter()
        .filter(|pool| pool.last_poll_age_seconds > pool.poll_interval_seconds * MISSED_POLLS)
        .map(|pool| format!("{:?} was not polled for {:.0} s", pool.name, pool.last_poll_age_seconds))
        .collect();
    let oldest = status.pools.iter().map(|pool| pool.last_poll_age_seconds).fold(0.0, f64::max);
    Check::new(
        "polls",
        if leaving {
            Ok("no more polls are wanted".to_owned())
        } else if late.is_empty() {
            Ok(format!("the last one was {oldest:.0} s ago"))
        } else {
            Err(late.join(", "))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn thirty_missed_polls_are_an_illness_unless_the_worker_leaves() {
        let board = StatusBoard::new("w", "http://h/api");
        board.set_state(State::Running);
        let pool = board.pool("p", Duration::from_secs(10));
        let polling = || polls(&board.snapshot());
        tokio::time::advance(Duration::from_mins(5)).await;
        assert!(polling().ok);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!polling().ok && polling().detail.contains("301 s"), "{:?}", polling());
        pool.polled();
        assert!(polling().ok);
        tokio::time::advance(Duration::from_hours(1)).await;
        board.set_state(State::Draining);
        assert!(polling().ok);
    }

    #[test]
    fn a_worker_is_ready_only_between_start_and_drain() {
        let board = StatusBoard::new("w", "http://h/api");
        for (now, ready) in [
            (State::Starting, false),
            (State::Running, true),
            (State::Draining, false),
            (State::Stopping, false),
        ] {
            board.set_state(now);
            assert_eq!(state(&board.snapshot()).ok, ready, "{now:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_an_illness() {
        let board = StatusBoard::new("w", "http://h/api");
        board.set_state(State::Running);
        let (wake, woken) = tokio::sync::oneshot::channel::<()>();
        let pause = Some(Duration::from_secs(10));
        let hanging = board.pool("p", Duration::from_secs(10)).watch("poller", pause, |pulse| async move {
            pulse.beat();
            drop(woken.await);
            pulse.beat();
            std::future::pending::<()>().await;
        });
        let hanging = tokio::spawn(hanging);
        tokio::time::sleep(Duration::from_mins(6)).await;
        assert!(loops(&board.snapshot()).ok, "a call may take so long");
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(loops(&board.snapshot()).detail, "ended or stuck: poller of \"p\"");
        wake.send(()).unwrap();
        tokio::task::yield_now().await;
        assert!(loops(&board.snapshot()).ok);
        hanging.abort();
    }

    #[test]
    fn a_loop_that_ends_before_the_worker_stops_is_an_illness() {
        let board = StatusBoard::new("w", "http://h/api");
        board.set_state(State::Running);
        drop(board.enter_loop("poller", None));
        let report = Report::of(vec![loops(&board.snapshot())]);
        assert!(!report.ok);
        assert_eq!(report.problems(), "loops: ended or stuck: poller");
        board.set_state(State::Stopping);
        assert!(loops(&board.snapshot()).ok);
    }
}
