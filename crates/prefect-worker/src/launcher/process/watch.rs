//! What a worker and a supervisor have to do with each other once the supervisor runs.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

use super::super::{OutputSink, Piece};
use super::output::Reader;
use super::state::{Slot, nobody_there};
use super::supervisor::{Order, processes};

/// The variable by which everything that belongs to an attempt is known.
pub(super) const MARK: &str = "FERRYMAN_ATTEMPT";
/// How soon new output is looked for, at first and after some silence.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(500);
/// How long a reader of the last output may stand still.
const STANDSTILL: Duration = Duration::from_secs(30);
/// A wait for the end is renewed after this long.
const RENEWAL: Duration = Duration::from_secs(5);

/// Gives an order; `false` if there is no supervisor to take it.
pub(super) fn order(slot: &Slot, order: Order) -> io::Result<bool> {
    let pipe = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(slot.orders());
    match pipe.and_then(|mut pipe| io::Write::write_all(&mut pipe, &[order as u8])) {
        Ok(()) => Ok(true),
        Err(error) if nobody_there(&error) || error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until there is no supervisor.
pub(super) async fn gone(slot: &Slot) -> io::Result<()> {
    let mut life = match pipe::OpenOptions::new().open_receiver(slot.life()) {
        Ok(life) => life,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // The pipe tells of an end that comes after it was opened, hence the question before and the renewal.
    while slot.is_supervised()? {
        if let Ok(read) = timeout(RENEWAL, life.read(&mut [0])).await {
            return read.map(drop);
        }
    }
    Ok(())
}

/// Waits until there is no supervisor, at most so long; `false` if there still is.
pub(super) async fn gone_within(slot: &Slot, limit: Duration) -> io::Result<bool> {
    match timeout(limit, gone(slot)).await {
        Ok(gone) => gone.map(|()| true),
        Err(_) => slot.is_supervised().map(|supervised| !supervised),
    }
}

/// Kills what still bears the mark of an attempt whose supervisor is gone or deaf.
pub(super) fn sweep(slot: &Slot) {
    let mark = format!("{MARK}={}", slot.id);
    for pid in processes() {
        if environment(pid).split(|byte| *byte == 0).any(|assignment| assignment == mark.as_bytes()) {
            tracing::warn!(attempt = slot.id, pid, "killing a process that was left without its supervisor");
            // It may have ended by itself.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// The environment of a process as it began, if it lives and is ours.
pub(super) fn environment(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()
}

/// Passes output on as it is written.
pub(super) struct Follower {
    reader: Reader,
    sink: OutputSink,
    /// Read and not yet passed on.
    waiting: VecDeque<Piece>,
}

impl Follower {
    pub(super) fn new(slot: &Slot, sink: OutputSink) -> Self {
        let reader = Reader::new(slot.path(), sink.after);
        Self { reader, sink, waiting: VecDeque::new() }
    }

    /// Passes on what comes, until nobody listens. May be dropped at any time and called again.
    pub(super) async fn follow(&mut self) {
        let mut pause = LOOK;
        while let Some(passed) = self.pass().await {
            pause = if passed { LOOK } else { (pause * 2).min(LOOK_MAX) };
            sleep(pause).await;
        }
    }

    /// Passes on the rest when nothing more is written.
    pub(super) async fn finish(&mut self) {
        while let Ok(Some(true)) = timeout(STANDSTILL, self.pass()).await {}
    }

    /// Passes on what is there: whether there was something, or `None` if it leads nowhere.
    async fn pass(&mut self) -> Option<bool> {
        if self.waiting.is_empty() {
            match self.reader.read() {
                Ok(pieces) => self.waiting = pieces,
                Err(error) => {
                    tracing::warn!(%error, "output of the process is not streamed");
                    return None;
                }
            }
        }
        let any = !self.waiting.is_empty();
        while !self.waiting.is_empty() {
            let place = self.sink.pieces.reserve().await.ok()?;
            if let Some(piece) = self.waiting.pop_front() {
                place.send(piece);
            }
        }
        Some(any)
    }
}
