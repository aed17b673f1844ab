//! The bootstrap of a Prefect server: variables, secrets, tag limits, work pools and deployments from files.
//!
//! Every command goes the same way: *load* (read and check all files), *plan* (compare with the server), *apply*
//! (write what differs). Nothing is written unless the first two succeeded whole, and a second run finds nothing
//! to do. What the files do not mention is left alone.

mod apply;
pub mod cli;
mod compare;
pub mod deploy;
mod desired;
mod environment;
mod error;
mod file;
mod keys;
mod limits;
mod plan;
mod secrets;
mod section;
mod variables;
mod work_pools;

pub use apply::apply;
pub use desired::{Desired, Sources};
pub use environment::Environment;
pub use error::{Error, Exit, Place};
pub use limits::TagLimit;
pub use plan::{Change, Plan, Step, Subject, plan};
pub use secrets::Secret;
pub use variables::Variable;
pub use work_pools::{Limit, QueueSpec, WorkPoolSpec};
