//! How far a step has come.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot of a step's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressUpdate {
    /// Bytes done.
    pub bytes: u64,
    /// Bytes to do.
    pub total_bytes: u64,
    /// Files (or objects) done.
    pub files: u64,
    /// Files (or objects) to do.
    pub total_files: u64,
}

/// Where a step tells how far it has come. The listener is called often and from async code: it must return at
/// once, and throttle what it passes on.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(ProgressUpdate) + Send + Sync>>);

impl Progress {
    /// Tells `listener`.
    pub fn new(listener: impl Fn(ProgressUpdate) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    /// Tells nobody.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn meter(&self, total_bytes: u64, total_files: u64) -> Meter {
        Meter {
            sink: self.clone(),
            total_bytes,
            total_files,
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// Counts towards known totals.
#[derive(Debug)]
pub(crate) struct Meter {
    sink: Progress,
    total_bytes: u64,
    total_files: u64,
    bytes: AtomicU64,
    files: AtomicU64,
}

impl Meter {
    pub(crate) fn add(&self, bytes: u64, files: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let files = self.files.fetch_add(files, Ordering::Relaxed) + files;
        if let Some(listener) = &self.sink.0 {
            listener(ProgressUpdate {
                bytes,
                total_bytes: self.total_bytes,
                files,
                total_files: self.total_files,
            });
        }
    }
}
