//! Test kit: real servers on free ports, simulators where the real part cannot run, and fault injection.
//!
//! - [`prefect`] starts the real Prefect server and Python worker from a virtual environment of its own.
//! - [`postgres`] starts a real `PostgreSQL` server, for Prefect's own.
//! - [`proxy`] starts the real proxies that stand before a Prefect server.
//! - [`docker`] finds the real Docker engine, builds images without a registry and removes what a test made.
//! - [`registry`] starts a real image registry, with a gate before it that counts and injects faults.
//! - [`browser`] is a real browser, which does and sees what a person would.
//! - [`s3`] is an S3 server over TCP that checks signatures and checksums and knows archive storage classes.
//! - [`scicat`] simulates the SciCat catalogue, true to its replies, its side effects and its oddities.
//! - [`faults`] describes the faults that servers and proxies inject; [`process`] supervises child processes.
//!
//! Everything started here ends with its handle: processes, containers, networks and files are removed on
//! drop, also when a test panics.

pub mod browser;
pub mod cli;
pub mod docker;
pub mod faults;
pub mod postgres;
pub mod prefect;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod s3;
pub mod scicat;
pub mod server;
mod upstream;
