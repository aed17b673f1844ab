//! What a run tells beside its states: log lines and artifacts. None of it may stop or fail the work.

mod artifact;
mod event;
mod log;
mod progress;

pub(crate) use artifact::{ArtifactQueue, check_key, link};
pub(crate) use event::check_event;
pub(crate) use log::{Level, LogSink, Origin};
pub use progress::Progress;
