//! Settings of a Prefect client, resolved once: environment, then `.env`, then `prefect.toml`, then the table
//! `tool.prefect` of `pyproject.toml`, then the active profile of `profiles.toml`. Python's own order.

mod error;
mod logging;
mod names;
mod resolved;
mod sources;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use logging::Logging;
pub use resolved::{Inputs, Settings};
pub use sources::Source;
