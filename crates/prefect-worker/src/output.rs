//! Output of containers, on the worker's own stdout.

use std::io::Write as _;

use tokio::sync::mpsc;

use crate::launcher::{OutputSink, Piece};

/// Pieces that may wait: a slow terminal slows the reading of logs, not the containers.
const QUEUE: usize = 256;

/// The way to stdout, and the writer, which blocks and ends with the last sink.
pub(crate) fn to_stdout() -> (OutputSink, impl FnOnce() + Send + 'static) {
    let (sink, mut pieces) = mpsc::channel::<Piece>(QUEUE);
    let writer = move || {
        let mut stdout = std::io::stdout().lock();
        let mut open = true;
        while let Some(piece) = pieces.blocking_recv() {
            // When nobody reads, the pieces must keep moving, or the containers' logs would stall.
            open = open && stdout.write_all(&piece.bytes).and_then(|()| stdout.flush()).is_ok();
        }
    };
    (OutputSink { pieces: sink, after: None }, writer)
}
