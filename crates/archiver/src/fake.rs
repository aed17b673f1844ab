//! A store and a catalogue in memory, for tests: true to the ports, with faults on demand.

mod catalogue;
mod store;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use catalogue::{CatalogueFault, MemoryCatalogue, catalogue_unavailable};
pub use store::{Fault, MemoryStore, unavailable};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
