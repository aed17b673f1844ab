//! Faults that a simulated server or a proxy injects: what to match, which match, and what happens then.
//!
//! A fault strikes before the request takes effect, or after it, so that "the answer was lost" can be told
//! from "nothing happened". Faults are asked in the order in which they were added; the first that strikes
//! wins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a fault does to the request it strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer with an error instead of the proper reply.
    Error {
        /// HTTP status of the answer.
        status: u16,
        /// Error code of the body; the S3 server writes it, the catalogue has none.
        code: String,
        /// After how many seconds to ask again; proxies write it.
        retry_after: Option<u64>,
    },
    /// Close the connection without an answer.
    DropConnection,
    /// Wait, then go on as usual.
    Delay(Duration),
}

/// A fault waiting for its request. Built by [`Fault::on`]; without further words it answers the next match
/// once with status 500.
#[derive(Clone, Debug)]
pub struct Fault {
    what: String,
    containing: String,
    skip: u32,
    times: u32,
    action: Action,
    after_effect: bool,
}

impl Fault {
    /// A fault on `what`: an S3 operation (`UploadPart`), or an HTTP method for catalogue and proxies (`PATCH`).
    /// `*` matches everything.
    pub fn on(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            containing: String::new(),
            skip: 0,
            times: 1,
            action: Action::Error { status: 500, code: "InternalError".to_owned(), retry_after: None },
            after_effect: false,
        }
    }

    /// Strike only where the subject contains `text`: `bucket/key` for S3, the path for others.
    #[must_use]
    pub fn containing(mut self, text: impl Into<String>) -> Self {
        self.containing = text.into();
        self
    }

    /// Strike from the n-th match on, counted from 1 at the moment the fault is added.
    #[must_use]
    pub fn nth(mut self, n: u32) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// Strike this many times; [`u32::MAX`] stands for ever.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Answer with this S3 error code and HTTP status.
    #[must_use]
    pub fn error(mut self, code: impl Into<String>, status: u16) -> Self {
        self.action = Action::Error { status, code: code.into(), retry_after: None };
        self
    }

    /// Answer with this HTTP status.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        self.error("InternalError", status)
    }

    /// Name the seconds after which to ask again, in an answer that is an error.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        if let Action::Error { retry_after, .. } = &mut self.action {
            *retry_after = Some(seconds);
        }
        self
    }

    /// Close the connection without an answer.
    #[must_use]
    pub fn drop_connection(mut self) -> Self {
        self.action = Action::DropConnection;
        self
    }

    /// Let the request wait, then go on as usual.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.action = Action::Delay(delay);
        self
    }

    /// Let the request take effect first: only its answer is lost, changed or late.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        self.after_effect = true;
        self
    }
}

/// A fault that strikes now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// What happens.
    pub action: Action,
    /// Whether the request takes effect before.
    pub after_effect: bool,
}

/// The faults of one server, shared between the test and the server.
#[derive(Debug, Default)]
pub struct Faults {
    waiting: Mutex<Vec<Fault>>,
    struck: AtomicUsize,
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    /// Removes every fault that has not struck yet.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Says whether a request is struck, and uses up that strike.
    pub fn strike(&self, what: &str, subject: &str) -> Option<Strike> {
        for fault in self.lock().iter_mut() {
            let matches = (fault.what == "*" || fault.what == what) && subject.contains(&fault.containing);
            if !matches || fault.times == 0 {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if fault.times != u32::MAX {
                fault.times -= 1;
            }
            self.struck.fetch_add(1, Ordering::Relaxed);
            return Some(Strike { action: fault.action.clone(), after_effect: fault.after_effect });
        }
        None
    }

    /// How often a fault has struck so far.
    pub fn struck(&self) -> usize {
        self.struck.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_the_nth_match_as_often_as_told() {
        let faults = Faults::default();
        faults.add(Fault::on("UploadPart").containing("a.tar").nth(2).times(2).error("SlowDown", 503));
        let hits: Vec<bool> = ["a.tar", "b.tar", "a.tar", "a.tar", "a.tar"]
            .iter()
            .map(|key| faults.strike("UploadPart", key).is_some())
            .collect();
        assert_eq!(hits, [false, false, true, true, false]);
        assert_eq!(faults.struck(), 2);
        assert_eq!(faults.strike("PutObject", "a.tar"), None);
    }

    #[test]
    fn a_fault_for_ever_ends_only_when_cleared() {
        let faults = Faults::default();
        faults.add(Fault::on("*").times(u32::MAX).status(500).after_effect());
        assert!((0..3).all(|_| faults.strike("GET", "/x").is_some_and(|strike| strike.after_effect)));
        faults.clear();
        assert_eq!(faults.strike("GET", "/x"), None);
    }
}
