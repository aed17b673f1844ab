//! The Prefect worker: polls a work pool, claims flow runs and launches one container per run.
//!
//! [`Worker::register`] makes it known to the server, [`Worker::run`] does the work. A dispatcher gives every
//! due run to a unit of its own (`unit`); units use a [`Launcher`] for the infrastructure and tell
//! the server how it ended, also of infrastructure that a former worker has left (`reconcile`). Outages of server or engine delay the worker; they do not end it.

mod admin;
mod amount;
mod claim;
pub mod cli;
mod compatibility;
pub mod control;
mod dispatcher;
mod doctor;
mod drift;
mod error;
mod events;
mod exit;
pub mod health;
mod http;
mod identity;
mod job;
pub mod launcher;
pub mod metrics;
mod options;
mod output;
pub mod policy;
mod poller;
mod pool;
mod reconcile;
mod redact;
mod run_log;
mod runs;
mod shutdown;
mod slug;
pub mod status;
#[cfg(test)]
mod tests;
mod unit;
mod watcher;
mod worker;

pub use admin::Admin;
pub use error::Error;
pub use launcher::{DockerLauncher, Launcher, ProcessLauncher};
pub use options::Options;
pub use shutdown::{OnShutdown, Shutdown};
pub use worker::Worker;
