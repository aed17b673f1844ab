//! Patience with a server that is away: calls are repeated with growing pauses until a deadline.

use std::time::Duration;

use prefect_client::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a report is tried.
#[derive(Debug)]
pub(crate) struct Patience {
    deadline: Duration,
    /// Ends it at once.
    give_up: CancellationToken,
}

impl Patience {
    pub(crate) const fn new(deadline: Duration, give_up: CancellationToken) -> Self {
        Self { deadline, give_up }
    }

    /// The pause after so many failures in a row.
    #[expect(clippy::unused_self, reason = "pauses are a matter of the patience, though the same for all")]
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(LONGEST)
    }

    /// Makes a call until it succeeds, fails for good, or the deadline has passed. The client has its own
    /// retries inside of each try.
    pub(crate) async fn insist<T, F>(&self, what: &str, mut call: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + self.deadline;
        let mut failures = 0;
        loop {
            let error = match call().await {
                Ok(done) => {
                    if failures > 0 {
                        tracing::info!(failures, "the Prefect server answers again: {what}");
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            failures += 1;
            let pause = self.pause(failures);
            if !error.is_transient() || Instant::now() + pause > end {
                return Err(error);
            }
            if failures == 1 {
                tracing::warn!(error = crate::error::chain(&error), "no answer, will try again: {what}");
            }
            if self.give_up.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(error);
            }
        }
    }

    /// The same for a call that must not take effect twice, which an answer that was lost on its way leaves in doubt:
    /// before each further try `look` tells whether an earlier one has taken effect.
    pub(crate) async fn insist_once<T, C, L>(
        &self,
        what: &str,
        mut call: impl FnMut() -> C,
        mut look: impl FnMut() -> L,
    ) -> Result<T, Error>
    where
        C: Future<Output = Result<T, Error>>,
        L: Future<Output = Result<Option<T>, Error>>,
    {
        let mut again = false;
        self.insist(what, || {
            let look = std::mem::replace(&mut again, true).then(&mut look);
            let call = call();
            async move {
                let Some(look) = look else { return call.await };
                match look.await {
                    Ok(Some(done)) => Ok(done),
                    Err(error) if error.is_transient() => Err(error),
                    // Nothing is there, or nobody may look: a report too many is better than none.
                    Ok(None) | Err(_) => call.await,
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute() {
        let patience = Patience::new(Duration::from_mins(15), CancellationToken::new());
        let pauses: Vec<u64> = (1..8).map(|failures| patience.pause(failures).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }
}
