//! The real Docker engine: images without a registry, containers, networks, and nothing left behind.
//!
//! All that an [`Engine`] makes carries a label that no other run has; it is removed when the engine is dropped,
//! also after a panic. Everything goes through the engine's API: the `docker` program is not needed. A [`Daemon`]
//! is an engine of a test's own, to be killed.

mod daemon;
mod engine;
mod image;
mod libraries;
mod python;
mod raw;

pub use daemon::Daemon;
pub use engine::{Container, Engine};
pub use image::Image;
pub use python::{PYTHON_IMAGE, python_image};
