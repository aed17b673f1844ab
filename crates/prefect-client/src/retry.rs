//! When a call is tried again, and after how long: the policy of Prefect's own client (contract §1.3), and before it
//! a few quick tries where the server is merely busy.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

/// Spread of the waits around their nominal length, as a part of it, unless
/// `PREFECT_CLIENT_RETRY_JITTER_FACTOR` says otherwise.
pub(crate) const JITTER: f64 = 0.2;

/// No server may make us wait longer than this between two tries.
const LONGEST: Duration = Duration::from_mins(10);

/// Nor ask again sooner than this.
pub(crate) const SHORTEST: Duration = Duration::from_millis(100);

/// Quick tries before the long waits begin. A server on SQLite answers 503 whenever two writers meet, many times a
/// minute; a moment later the other has written.
const SOON: u32 = 4;

/// The wait before the first of them; each further one doubles it.
const FIRST: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) max_retries: u32,
    pub(crate) extra_codes: BTreeSet<u16>,
    /// Spread of the waits, as a part of their length.
    pub(crate) jitter: f64,
}

impl Policy {
    pub(crate) fn retries_status(&self, status: u16) -> bool {
        matches!(status, 408 | 429 | 502 | 503) || self.extra_codes.contains(&status)
    }

    /// Whether an answer says no more than that the server is busy at this moment.
    pub(crate) fn is_busy(status: u16, retry_after: Option<Duration>) -> bool {
        status == 503 && retry_after.is_none()
    }

    /// The wait before quick try number `quick` (from 1) of a busy server: 50, 100, 200, 400 ms, and up to as much again
    /// by chance, since those who met once must not meet again. `None` after these, or if nothing is tried again.
    pub(crate) fn soon(&self, quick: u32) -> Option<Duration> {
        let doubled = FIRST.as_secs_f64() * f64::from(2u32.saturating_pow(quick.saturating_sub(1)));
        let wait = Duration::from_secs_f64(doubled * (1.0 + chance()));
        (quick <= SOON && self.max_retries > 0).then_some(wait)
    }

    /// The wait before retry number `retry` (from 1): what the server asked for and up to the jitter more, or
    /// 2, 4, 8, 16 … seconds give or take the jitter.
    pub(crate) fn wait(&self, retry: u32, retry_after: Option<Duration>) -> Duration {
        let jitter = self.jitter.max(0.0);
        let wait = if let Some(asked) = retry_after {
            asked.max(SHORTEST).as_secs_f64() * (1.0 + jitter * chance())
        } else {
            f64::from(2u32.saturating_pow(retry.min(9))) * (1.0 + jitter.min(1.0) * (2.0 * chance() - 1.0))
        };
        Duration::from_secs_f64(wait.clamp(SHORTEST.as_secs_f64(), LONGEST.as_secs_f64()))
    }
}

/// `Retry-After` in seconds; Prefect sends fractions.
pub(crate) fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(|wait| wait.min(LONGEST))
}

/// A number in 0..1. Ids are random already; nothing here needs more than that.
fn chance() -> f64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    f64::from(u32::try_from(high >> 32).unwrap_or_default()) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(jitter: f64) -> Policy {
        Policy { max_retries: 5, extra_codes: BTreeSet::new(), jitter }
    }

    #[test]
    fn waits_double_and_stay_within_a_fifth() {
        for (retry, nominal) in [(1, 2.0), (2, 4.0), (3, 8.0), (5, 32.0)] {
            for _ in 0..100 {
                let wait = policy(JITTER).wait(retry, None).as_secs_f64();
                assert!((nominal * 0.8..=nominal * 1.2).contains(&wait), "{wait} for {nominal}");
            }
        }
    }

    #[test]
    fn a_busy_server_is_tried_again_soon_but_not_for_ever() {
        assert!(Policy::is_busy(503, None));
        assert!(!Policy::is_busy(503, Some(Duration::from_secs(1))) && !Policy::is_busy(429, None));
        for (quick, milliseconds) in [(1, 50), (2, 100), (3, 200), (4, 400)] {
            let wait = policy(JITTER).soon(quick).unwrap();
            let shortest = Duration::from_millis(milliseconds);
            assert!((shortest..=shortest * 2).contains(&wait), "{wait:?}");
        }
        assert_eq!(policy(JITTER).soon(5), None);
        assert_eq!(Policy { max_retries: 0, ..policy(JITTER) }.soon(1), None);
    }

    #[test]
    fn the_jitter_may_be_none_or_any() {
        assert_eq!(policy(0.0).wait(3, None), Duration::from_secs(8));
        for jitter in [-1.0, 5.0, f64::INFINITY, f64::NAN] {
            let wait = policy(jitter).wait(1, Some(Duration::from_secs(1)));
            assert!((Duration::from_secs(1)..=LONGEST).contains(&wait), "{jitter}: {wait:?}");
        }
    }

    #[test]
    fn the_servers_wish_is_never_undercut_and_never_boundless() {
        let asked = Duration::from_millis(1716);
        let wait = |asked| policy(JITTER).wait(1, Some(asked));
        assert!((0..100).all(|_| wait(asked) >= asked));
        assert_eq!(wait(Duration::from_secs(1_000_000)), LONGEST);
        assert!(wait(Duration::ZERO) >= SHORTEST);
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("retry-after", "-1".parse().unwrap());
        assert_eq!(retry_after(&headers), None);
        headers.insert("retry-after", "1.5".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_millis(1500)));
    }
}
