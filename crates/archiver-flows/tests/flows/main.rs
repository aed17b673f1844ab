//! The real program against an S3 server, a SciCat simulator and a recording Prefect server: what is left after
//! each way a run can end.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by its panic")]

mod archive;
mod killed;
mod prefect;
mod retrieve;
mod settings;
mod world;
