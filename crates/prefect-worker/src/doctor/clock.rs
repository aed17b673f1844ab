//! How far two clocks are apart.

use jiff::{SignedDuration, Timestamp};

use super::Finding;

/// Dates of answers have whole seconds, and answers take their time: less than this nobody can see.
const VISIBLE: SignedDuration = SignedDuration::from_secs(2);
/// A worker takes a claim of this age for that of a dead one: clocks that are further apart make it take runs
/// out of the hands of the living.
const HARMFUL: SignedDuration = SignedDuration::from_secs(30);

/// A moment of another clock, which lies within a span, seen within a span of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    /// When the other was asked and when it had answered, by our clock.
    pub(super) ours: (Timestamp, Timestamp),
    /// The earliest moment that the other clock may have shown.
    pub(super) theirs: Timestamp,
    /// How much later it may have been.
    pub(super) coarseness: SignedDuration,
}

impl Sighting {
    /// The least by which the other clock is ahead of ours; negative if it is behind.
    fn ahead(&self) -> SignedDuration {
        let (asked, answered) = self.ours;
        let earliest = self.theirs.duration_since(answered);
        let latest = self.theirs.duration_since(asked) + self.coarseness;
        if earliest.is_positive() {
            earliest
        } else if latest.is_negative() {
            latest
        } else {
            SignedDuration::ZERO
        }
    }

    /// The finding about the clock, which is `whose`.
    pub(super) fn finding(&self, whose: &str) -> Finding {
        let ahead = self.ahead();
        let apart = ahead.abs();
        let relation = if ahead.is_positive() { "ahead of" } else { "behind" };
        let found = format!("it is {:.0} s {relation} this machine's", apart.as_secs_f64());
        let remedy = "let both machines synchronise their clocks (chronyc tracking, timedatectl)";
        let finding = if apart <= VISIBLE {
            Finding::ok("clock", "it agrees with this machine's")
        } else if apart <= HARMFUL {
            Finding::warning("clock", format!("{found}: runs start that much too early or late"), remedy)
        } else {
            let harm = format!("{found}: runs start at wrong times, and workers take each other for dead");
            Finding::failed("clock", harm, remedy)
        };
        finding.about(whose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn only_what_neither_latency_nor_rounding_explains_counts() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        for (asked, answered, theirs, ahead, verdict) in [
            (0, 0, 0, 0, Verdict::Ok),
            // A slow answer: the other clock was read somewhere on the way.
            (0, 9, 5, 0, Verdict::Ok),
            (0, 0, -1, 0, Verdict::Ok),
            (0, 0, -3, -2, Verdict::Ok),
            (0, 0, -4, -3, Verdict::Warning),
            (0, 1, 4, 3, Verdict::Warning),
            (0, 0, 31, 31, Verdict::Failed),
            (0, 0, -3600, -3599, Verdict::Failed),
        ] {
            let coarseness = SignedDuration::from_secs(1);
            let sighting = Sighting { ours: (at(asked), at(answered)), theirs: at(theirs), coarseness };
            assert_eq!(sighting.ahead().as_secs(), ahead);
            assert_eq!(sighting.finding("of the API").verdict, verdict, "{sighting:?}");
        }
    }
}
