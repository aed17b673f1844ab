//! Runs under faults: parts are killed and lines are cut at seeded moments, and in the end the server must hold what it
//! would have held, or tell what happened.
//!
//! - [`worker`] kills worker, engine and server while a worker brings runs through.
//! - [`engine`] takes the server from flows at work, in every way in which servers and networks fail.

pub mod engine;
pub mod worker;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::say;

/// A server that keeps leases in memory forgets in its death whose slots are taken.
const PERSISTENT_LEASES: (&str, &str) =
    ("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem");

/// Where the logs of a test are written.
fn directory() -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("ferryman-faults-").tempdir();
    directory.context("failed to make a directory for the logs")
}

/// What a failure leaves for its reader: the logs, the server's among them.
fn keep(directory: TempDir, server_log: &Path) -> Result<()> {
    let kept = directory.path().join("server.log");
    std::fs::copy(server_log, kept).context("failed to keep the server's log")?;
    say(&format!("the logs are in {}", directory.keep().display()));
    Ok(())
}

/// Now, in milliseconds of the Unix time.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}
