//! The whole of Ferryman against real servers: the demo, the measurements, and what the end-to-end tests
//! share.
//!
//! - [`programs`] finds our binaries, [`images`] puts them into images without a registry.
//! - [`stack`] starts everything that one installation consists of, and removes it again.
//! - [`dataset`] is a directory on its way through: uploaded as an ingestor would, compared byte for byte.
//! - [`local`] is the same without containers, for measurements and tests of single flows.
//! - [`runs`] triggers and watches flow runs as SciCat's side of the system does.
//! - [`outside`] checks an archive with nothing of ours: the store's own listing and the system's `tar`.
//! - [`puppet`] is a flow run of known behaviour, [`dice`] is chance with a seed.
//! - [`guide`] reads a guide as people read it, so that a test can follow it.
//! - [`scenarios`] are the flows that both engines run to be compared, [`measured`] those that they are measured with.
//! - [`record`] is what a server holds of a flow run, as one document; [`compare`] tells where documents differ.
//! - [`demo`], [`measure`], [`differential`] and [`fault`] are the programs made of these.

pub mod cli;
pub mod compare;
pub mod containers;
pub mod dataset;
pub mod demo;
pub mod dice;
pub mod differential;
pub mod fault;
pub mod guide;
pub mod images;
pub mod local;
pub mod measure;
pub mod measured;
pub mod outside;
pub mod programs;
pub mod puppet;
pub mod record;
pub mod runs;
pub mod s3;
pub mod scenarios;
pub mod stack;
pub mod summary;

/// Tells the person at the terminal.
#[expect(clippy::print_stderr, reason = "this is the one place that does")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Gives a result to whoever reads standard output.
#[expect(clippy::print_stdout, reason = "this is the one place that does")]
pub(crate) fn print(text: &str) {
    println!("{text}");
}
