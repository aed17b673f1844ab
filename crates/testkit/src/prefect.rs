//! The real Prefect server, CLI and Python worker.
//!
//! They come from a virtual environment of exactly one version, made from `PyPI` once and kept: in
//! `FERRYMAN_VENV`, else below cargo's target directory. A server has a home, a database and a copy of the
//! user interface of its own in a temporary directory; `~/.prefect` is neither read nor written.

mod server;
mod venv;

pub use server::{Options, PrefectServer};
pub use venv::{VERSION, Venv};
