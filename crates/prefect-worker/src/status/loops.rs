//! The loops of the worker on the board: whether they go round.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{PoolBoard, StatusBoard};

/// The longest that a loop may be about what it does between two pauses: calls that take longer are cut and made
/// anew.
pub(crate) const ROUND: Duration = Duration::from_mins(5);
/// How much later than that a loop may be before it counts as stuck.
const LATENESS: Duration = Duration::from_mins(1);

/// A loop of the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoopStatus {
    /// What it does.
    pub name: String,
    /// Whether it goes round: it has not ended, and is not silent for longer than it may be.
    pub alive: bool,
    /// Seconds since it last went round; absent before it has begun to, and for a loop that does not tell.
    #[serde(default)]
    pub last_beat_age_seconds: Option<f64>,
}

/// A loop on the board.
pub(super) struct Loop {
    running: bool,
    /// When it last went round; not before it has begun to.
    beat: Option<Instant>,
    silence: Option<Duration>,
}

impl Loop {
    pub(super) fn status(&self, name: &str, now: Instant) -> LoopStatus {
        let silent =
            self.silence.zip(self.beat).is_some_and(|(silence, beat)| now.duration_since(beat) > silence);
        LoopStatus {
            name: name.to_owned(),
            alive: self.running && !silent,
            last_beat_age_seconds: self.beat.map(|beat| now.duration_since(beat).as_secs_f64()),
        }
    }
}

impl StatusBoard {
    /// A loop that must not end before the worker stops. With `silence` it must beat more often than that, from
    /// its first beat on.
    pub fn enter_loop(&self, name: &str, silence: Option<Duration>) -> LoopGuard {
        let name = name.to_owned();
        let entry = Loop { running: true, beat: None, silence };
        self.board.send_modify(|board| {
            board.loops.insert(name.clone(), entry);
        });
        LoopGuard { board: self.clone(), name }
    }
}

impl PoolBoard {
    /// A loop of this pool that shows on the board: dead if it breaks, or pauses for longer than `pause` and works
    /// for longer than it may; gone once it has ended. Without `pause` it may be silent for ever.
    pub(crate) fn watch<W, F>(
        &self,
        name: &str,
        pause: Option<Duration>,
        work: W,
    ) -> impl Future<Output = ()> + Send + use<W, F>
    where
        W: FnOnce(Pulse) -> F,
        F: Future<Output = ()> + Send,
    {
        let silence = pause.map(|pause| pause.saturating_add(ROUND + LATENESS));
        let guard = self.board.enter_loop(&format!("{name} of {:?}", self.name), silence);
        let work = Box::pin(work(guard.pulse()));
        async move {
            work.await;
            guard.leave();
        }
    }
}

/// The way in which a loop tells that it goes round.
#[derive(Debug, Clone)]
pub struct Pulse {
    board: StatusBoard,
    name: String,
}

impl Pulse {
    /// The loop has gone round.
    pub fn beat(&self) {
        // No news for those who wait for some.
        self.board.board.send_if_modified(|board| {
            if let Some(entry) = board.loops.get_mut(&self.name) {
                entry.beat = Some(Instant::now());
            }
            false
        });
    }
}

/// A loop that runs until the guard is dropped.
#[derive(Debug)]
pub struct LoopGuard {
    board: StatusBoard,
    name: String,
}

impl LoopGuard {
    /// What the loop beats with.
    pub fn pulse(&self) -> Pulse {
        Pulse { board: self.board.clone(), name: self.name.clone() }
    }

    /// The loop has ended, as it should.
    pub fn leave(self) {
        self.board.board.send_modify(|board| {
            board.loops.remove(&self.name);
        });
    }
}

impl Drop for LoopGuard {
    fn drop(&mut self) {
        self.board.board.send_modify(|board| {
            if let Some(entry) = board.loops.get_mut(&self.name) {
                entry.running = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_dead_when_it_ends_or_falls_silent() {
        let board = StatusBoard::new("w", "http://h/api");
        let quiet = board.enter_loop("quiet", None);
        let beating = board.enter_loop("beating", Some(Duration::from_secs(10)));
        let pulse = beating.pulse();
        let alive = || board.snapshot().loops.iter().map(|entry| entry.alive).collect::<Vec<_>>();
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(alive(), [true, true], "it has not begun to go round");
        pulse.beat();
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(alive(), [false, true], "in the order of their names: beating, quiet");
        pulse.beat();
        assert_eq!(alive(), [true, true]);
        drop(quiet);
        assert_eq!(alive(), [true, false]);
    }
}
