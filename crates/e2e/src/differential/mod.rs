//! Ours beside the Python peer, compared instead of measured: the same inputs through both, and every difference
//! told.
//!
//! [`worker`] runs every case of `crates/e2e/differential/worker` through the Python worker and through ours, on
//! the same work pool of one server, one after the other, and compares the containers that the engine got.
//! [`engine`] runs every scenario as a Python flow and as a Rust flow against one server, and compares what the
//! server holds afterwards. Both tell differences by [`compare`] and keep account of them in [`findings`].

pub mod compare;
pub mod engine;
pub mod findings;
pub mod worker;

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

/// How long a busy server is waited for.
const PATIENCE: Duration = Duration::from_mins(3);
const RETRY: Duration = Duration::from_secs(1);

/// Which cases are run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Part {
    /// All.
    #[default]
    All,
    /// The few that stand for all.
    Quick,
    /// Those whose names contain this.
    Named(String),
}

/// What is compared.
#[derive(Debug, Default)]
pub struct Options {
    /// Which cases.
    pub part: Part,
    /// Say nothing on the way.
    pub quiet: bool,
}

/// Something that goes through both.
trait Case {
    fn name(&self) -> &str;
    fn is_quick(&self) -> bool;
}

impl Part {
    /// The cases that are in it.
    fn of<C: Case>(&self, mut cases: Vec<C>) -> Result<Vec<C>> {
        match self {
            Self::All => {}
            Self::Quick => cases.retain(Case::is_quick),
            Self::Named(text) => {
                cases.retain(|case| case.name().contains(text.as_str()));
                ensure!(!cases.is_empty(), "no case has {text:?} in its name");
            }
        }
        Ok(cases)
    }
}

/// Repeats a call that may be repeated, as long as the server only says that it is busy.
async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, prefect_client::Error>
where
    F: Future<Output = Result<T, prefect_client::Error>>,
{
    let started = Instant::now();
    loop {
        match call().await {
            Err(error) if error.is_transient() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(RETRY).await;
            }
            outcome => return outcome,
        }
    }
}
