//! Ours beside the Python peer, compared instead of measured: the same inputs through both, and every difference
//! told.
//!
//! [`worker`] runs every case of `crates/e2e/differential/worker` through the Python worker and through ours, on
//! the same work pool of one server, one after the other, and compares the containers that the engine got.

pub mod worker;
