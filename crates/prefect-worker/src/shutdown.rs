//! How a worker is told to stop.

use tokio_util::sync::CancellationToken;

/// What becomes of runs whose infrastructure runs when the worker stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnShutdown {
    /// They go on; the next worker of the pool on this machine takes them over.
    #[default]
    Detach,
    /// The worker waits for their end.
    Drain,
    /// They are cancelled.
    Cancel,
}

impl std::str::FromStr for OnShutdown {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        clap::ValueEnum::from_str(text, true)
            .map_err(|_| format!("{text:?} is none of detach, drain, cancel"))
    }
}

/// The one way to stop a worker. Whatever is asked for, it claims no more and hands back what has not
/// started. Clones are handles of the same request.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    claims: CancellationToken,
    runs: CancellationToken,
    leave: CancellationToken,
}

impl Shutdown {
    /// Nobody wants to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for an end. A later request may ask for more.
    pub fn request(&self, what: OnShutdown) {
        self.claims.cancel();
        match what {
            OnShutdown::Detach => self.leave.cancel(),
            OnShutdown::Drain => {}
            OnShutdown::Cancel => self.runs.cancel(),
        }
    }

    /// Resolves when there are to be no more claims.
    pub async fn requested(&self) {
        self.claims.cancelled().await;
    }

    /// Whether an end was asked for.
    pub fn is_requested(&self) -> bool {
        self.claims.is_cancelled()
    }

    /// Resolves when running runs are to be cancelled.
    pub(crate) async fn cancels_runs(&self) {
        self.runs.cancelled().await;
    }

    /// Resolves when running runs are to be left to the next worker.
    pub(crate) async fn leaves_runs(&self) {
        self.leave.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_request_ends_the_claims_and_a_later_one_may_ask_for_more() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_requested());
        shutdown.request(OnShutdown::Drain);
        assert!(shutdown.is_requested());
        assert!(!shutdown.leave.is_cancelled() && !shutdown.runs.is_cancelled());
        shutdown.request(OnShutdown::Cancel);
        shutdown.cancels_runs().await;
        shutdown.request(OnShutdown::Detach);
        shutdown.leaves_runs().await;
    }
}
