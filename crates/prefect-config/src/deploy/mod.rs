//! Deployments from a `prefect.yaml`, as `prefect deploy` makes them, without Python.
//!
//! Flows are not imported: their parameter schemas come from a file that the flow binary writes
//! (`archiver-flows schema --all`). References to blocks and variables of the server are not resolved here but
//! by the worker, run by run: a password never becomes part of a deployment.

mod compare;
mod entry;
mod flows;
mod placeholders;
mod project;
mod schedule;

pub(crate) use compare::plan;
pub use entry::{ConcurrencySpec, DeploymentSpec};
pub use project::{Project, Selection, load};
pub use schedule::Schedule;
