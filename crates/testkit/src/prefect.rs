//! The real Prefect server, CLI and Python worker.
//!
//! They come from a virtual environment for each release, made from `PyPI` once and kept: in `FERRYMAN_VENV`,
//! else below cargo's target directory. A server has a home, a database and a copy of the user interface of its
//! own in a temporary directory; `~/.prefect` is neither read nor written.

mod fake;
mod rest;
mod server;
mod venv;

pub use fake::FakeServer;
pub use rest::Rest;
pub(crate) use server::free_port;
pub use server::{Database, Options, PrefectServer};
pub use venv::{Release, VERSION, Venv};
