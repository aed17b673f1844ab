//! Ours beside the Python peer, compared instead of measured: the same inputs through both, and every difference
//! told.
//!
//! [`worker`] runs every case of `crates/e2e/differential/worker` through the Python worker and through ours, on
//! the same work pool of one server, one after the other, and compares the containers that the engine got.
//! [`engine`] runs every scenario as a Python flow and as a Rust flow against one server, and compares what the
//! server holds afterwards. Both keep account of the differences by [`crate::compare`].

pub mod engine;
pub mod worker;

use anyhow::{Result, ensure};

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
