//! The Prefect worker: polls a work pool, claims flow runs and launches one container per run.
//!
//! [`Worker::register`] makes it known to the server, [`Worker::run`] does the work. A dispatcher gives every
//! due run to a unit of its own (`submission`); units use a [`Launcher`] for the infrastructure and tell
//! the server how it ended. Outages of server or engine delay the worker; they do not end it.

mod cancel;
pub mod cli;
mod error;
mod events;
mod exit;
mod health;
mod job;
pub mod launcher;
pub mod metrics;
mod options;
mod output;
mod pool;
mod redact;
mod report;
mod run_log;
mod slug;
pub mod status;
mod submission;
#[cfg(test)]
mod tests;
mod worker;

pub use error::Error;
pub use launcher::{DockerLauncher, Launcher, ProcessLauncher};
pub use options::Options;
pub use worker::Worker;
