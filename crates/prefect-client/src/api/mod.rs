//! The calls of the API, one method each. No policy: callers decide what to do with an answer.

mod blocks;
mod deployments;
mod flow_runs;
mod limits;
mod pools;
mod records;

pub use limits::Acquire;
