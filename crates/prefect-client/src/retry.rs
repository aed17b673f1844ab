//! When a call is tried again, and after how long: the policy of Prefect's own client (contract §1.3).

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
