//! The flows of the archiver: what a runtime container executes.
//!
//! ```text
//! archive_datasetlist ── archive_dataset (one per dataset, one after the other)
//! retrieve_datasetlist ┬ retrieve_dataset (likewise)
//!                      └ wait_for_retrieval_flow, where another run is retrieving the dataset already
//! ```
//!
//! This crate wires: [`archiver`] knows how to archive and retrieve, its adapters know S3 and SciCat,
//! [`prefect_flow`] knows flow runs. What is decided here is the order of the steps, what each is called in the
//! run page, what a job and a dataset are told about their fate, and what happens when a step fails.
//!
//! Invariants:
//! - all settings are read and checked before the first side effect;
//! - a job that was told `inProgress` is told how it ended, also when the run is cancelled, and by a hook when it was
//!   killed;
//! - a dataset that fails does not keep the others of its job from being processed;
//! - a dataset that another live run is archiving is left to it;
//! - of a dataset that another run has archived nothing is changed, its lifecycle included.

mod archive;
mod archive_dataset;
mod config;
mod gauge;
mod job;
mod orphan;
mod other_runs;
mod retrieve;
mod retrieve_dataset;
mod site;
mod step;

use prefect_flow::Program;

/// The program with all its flows.
pub fn program() -> Program {
    Program::new("archiver-flows", env!("CARGO_PKG_VERSION"))
        .about("Archives datasets from a landing zone into tar datablocks, and retrieves them.")
        .flow(archive::flow())
        .flow(retrieve::flow())
}
