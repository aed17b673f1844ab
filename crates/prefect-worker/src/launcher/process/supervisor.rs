//! The parent of a program: a process of its own, so that the program outlives the worker.
//!
//! The worker starts it with the job's environment and tells it through its standard input what to run. It
//! leaves the worker's session, and has a child ready that will become the program (see [`become_program`]).
//! What follows comes as [`Order`]s through a named pipe. It writes down what the program prints and how it
//! ends, and then ends too, and with it everything that the program has left running.
//!
//! That it lives shows in the pipes that it holds open, and in nothing else: process ids are used again,
//! after a reboot all of them.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::super::Attempt;
use super::cgroup::MemoryGroup;
use super::output::Writer;
use super::state::{Exit, Record, Slot};
use crate::redact;

/// The answer of a supervisor that is ready.
pub(super) const READY: &str = "ready";
/// How long what a program has left may take to end, and its output to come.
const AFTERMATH: Duration = Duration::from_secs(5);
/// How long the exit is tried to be written down, such as on a full disk.
const PERSISTENCE: Duration = Duration::from_mins(1);
/// The file through which a process finds its own executable, also when that was replaced or removed.
pub(super) const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// How our processes call themselves.
pub(super) const NAME: &str = "prefect-worker";
/// The command that makes a process a supervisor.
pub(super) const SUPERVISE: &str = "supervise";
/// The command that makes a process wait to become a program.
const BECOME: &str = "become";

/// What a supervisor is told at first.
#[derive(Serialize, Deserialize)]
pub(super) struct Assignment {
    pub(super) attempt: Attempt,
    pub(super) name: String,
    pub(super) host: String,
    /// The words of the command line.
    pub(super) words: Vec<String>,
    /// The working directory; one in the attempt's directory if there is none.
    pub(super) working_dir: Option<PathBuf>,
}

/// What a supervisor may be told later, a byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Let the program run. Once it runs this means nothing.
    Start = b's',
    /// Ask it to end.
    Terminate = b't',
    /// Force it to end.
    Kill = b'k',
    /// End all, and write nothing down.
    Discard = b'd',
}

impl Order {
    fn parse(byte: u8) -> Option<Self> {
        [Self::Start, Self::Terminate, Self::Kill, Self::Discard]
            .into_iter()
            .find(|order| *order as u8 == byte)
    }
}

/// Runs the hidden commands that make a process a supervisor, or a program's; `None` if it is neither.
pub(crate) fn main(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, command, rest @ ..] = arguments else { return None };
    match (command.to_str()?, rest) {
        (SUPERVISE, [directory]) => Some(supervise(Path::new(directory))),
        (BECOME, [program, arguments @ ..]) => Some(become_program(program, arguments)),
        _ => None,
    }
}

/// Runs a supervisor. The environment is the program's.
fn supervise(directory: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.and_then(|runtime| {
        // Away from the terminal and the process group of the worker.
        setsid()?;
        // Nothing that the program starts escapes by being orphaned.
        prctl::set_child_subreaper(true)?;
        runtime.block_on(async { Supervisor::start(directory)?.run().await })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            answer(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Waits for the word of the supervisor, and becomes the program: its process id is known before it starts.
fn become_program(program: &OsStr, arguments: &[OsString]) -> ExitCode {
    // A program whose supervisor was killed must not go on unseen.
    if prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return ExitCode::FAILURE;
    }
    let mut word = [0];
    // Without a word the supervisor is gone, or was before we could ask to die with it.
    if !matches!(io::stdin().read(&mut word), Ok(1)) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(arguments).stdin(Stdio::null()).exec();
    // The program's output is the only place where this can be told; the codes are those of shells.
    let text = format!("failed to start {}: {error}\n", program.display());
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    drop(io::stderr().write_all(text.as_bytes()));
    ExitCode::from(code)
}

struct Supervisor {
    slot: Slot,
    program: Pid,
    /// Tells the child to become the program.
    word: Option<ChildStdin>,
    orders: pipe::Receiver,
    /// Open for as long as we live.
    _life: pipe::Sender,
    output: pipe::Receiver,
    log: Writer,
    children: Stream,
    terminations: Stream,
    memory: MemoryGroup,
    forced: bool,
}

impl Supervisor {
    /// Has the program ready and everything written down that a later worker must know.
    fn start(directory: &Path) -> io::Result<Self> {
        let slot = Slot::at(directory.to_owned());
        let mut assignment = String::new();
        io::stdin().read_to_string(&mut assignment)?;
        let assignment: Assignment = serde_json::from_str(&assignment)?;

        let environment: Vec<(String, String)> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        let pairs = environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let secrets = redact::secrets(pairs, &assignment.attempt.secret_env);
        let log = Writer::create(slot.path(), secrets)?;

        let children = signal(SignalKind::child())?;
        let terminations = signal(SignalKind::terminate())?;
        let orders = pipe::OpenOptions::new().read_write(true).open_receiver(slot.orders())?;
        let life = pipe::OpenOptions::new().read_write(true).open_sender(slot.life())?;

        let working_dir = assignment.working_dir.map_or_else(|| slot.make_work(), Ok)?;
        let (output, output_end) = io::pipe()?;
        // One pipe for both: what the program writes stays in its order.
        let mut child = Command::new(OWN_EXECUTABLE)
            .arg0(NAME)
            .arg(BECOME)
            .args(assignment.words)
            .current_dir(working_dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output_end.try_clone()?)
            .stderr(output_end)
            .spawn()?;
        let program = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);

        slot.write_record(&Record {
            attempt: assignment.attempt,
            name: assignment.name,
            host: assignment.host,
            pid: program.as_raw(),
            created: Timestamp::now(),
        })?;
        answer(READY);
        Ok(Self {
            slot,
            program,
            word: child.stdin.take(),
            orders,
            _life: life,
            output: pipe::Receiver::from_owned_fd(output.into())?,
            log,
            children,
            terminations,
            memory: MemoryGroup::of_self(),
            forced: false,
        })
    }

    async fn run(mut self) -> io::Result<()> {
        let mut chunk = vec![0; 64 << 10];
        let mut open = true;
        let mut order = [0];
        loop {
            tokio::select! {
                _ = self.children.recv() => if self.program_has_ended() { break },
                read = self.orders.read_exact(&mut order) => {
                    read?;
                    match Order::parse(order[0]) {
                        Some(Order::Start) => if let Some(mut word) = self.word.take() {
                            // If nobody takes it the child has ended, which will be seen.
                            drop(word.write_all(b"s"));
                        },
                        Some(Order::Terminate) => self.signal(Signal::SIGTERM),
                        Some(Order::Kill) => {
                            self.forced = true;
                            self.signal(Signal::SIGKILL);
                        }
                        Some(Order::Discard) => return self.reap().await.map(drop),
                        None => {}
                    }
                }
                // A service manager that ends us means the program, which can end well if it has begun.
                _ = self.terminations.recv() => {
                    if self.word.is_some() {
                        return self.reap().await.map(drop);
                    }
                    self.signal(Signal::SIGTERM);
                }
                read = self.output.read(&mut chunk), if open => match read {
                    Ok(0) | Err(_) => open = false,
                    // A full disk costs output; it is no reason to end the program.
                    Ok(length) => drop(self.log.write(chunk.get(..length).unwrap_or_default())),
                },
            }
        }
        let status = self.reap().await?;
        let rest = async {
            while let Ok(length @ 1..) = self.output.read(&mut chunk).await {
                drop(self.log.write(chunk.get(..length).unwrap_or_default()));
            }
        };
        // Somebody beyond our reach may hold the pipe.
        drop(timeout(AFTERMATH, rest).await);
        drop(self.log.finish());
        self.write_exit(status).await
    }

    /// Signals the program's group. It cannot be another's: the program was not reaped yet.
    fn signal(&self, signal: Signal) {
        // That nobody is left in the group will be seen.
        killpg(self.program, signal).ok();
    }

    /// Looks at children that have ended, the program not reaped: its group must stay its own.
    fn program_has_ended(&self) -> bool {
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::All, ended).map(|status| status.pid()) {
                Ok(Some(pid)) if pid == self.program => return true,
                // An orphan that came to us.
                Ok(Some(pid)) => drop(waitpid(pid, Some(WaitPidFlag::WNOHANG))),
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Ends the program and whatever it has left, and reaps all.
    async fn reap(&self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        let status = match waitpid(self.program, None)? {
            WaitStatus::Exited(_, code) => ExitStatus::from_raw((code & 0xff) << 8),
            WaitStatus::Signaled(_, signal, _) => ExitStatus::from_raw(signal as i32),
            other => return Err(io::Error::other(format!("unexpected status {other:?}"))),
        };
        let deadline = Instant::now() + AFTERMATH;
        while Instant::now() < deadline {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    kill_children();
                    sleep(Duration::from_millis(5)).await;
                }
                Err(Errno::ECHILD) => break,
                Ok(_) | Err(_) => {}
            }
        }
        Ok(status)
    }

    async fn write_exit(&self, status: ExitStatus) -> io::Result<()> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok();
        let kilobytes = usage.and_then(|usage| u64::try_from(usage.max_rss()).ok());
        let killed = status.signal() == Some(Signal::SIGKILL as i32) && !self.forced;
        let exit = Exit {
            code: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1).into(),
            out_of_memory: killed && self.memory.ran_out(),
            peak_memory: kilobytes.map(|kilobytes| kilobytes * 1024),
            memory_limit: self.memory.limit(),
            ended: Timestamp::now(),
        };
        let deadline = Instant::now() + PERSISTENCE;
        loop {
            match self.slot.write_exit(&exit) {
                Err(error) if error.kind() != io::ErrorKind::NotFound && Instant::now() < deadline => {
                    sleep(Duration::from_secs(1)).await;
                }
                written => return written,
            }
        }
    }
}

/// Kills the children that orphaned processes have become.
fn kill_children() {
    let own = std::process::id();
    for pid in processes() {
        if parent_of(pid) == Some(own) {
            // It may have ended by now; as our child it keeps its id until we reap it.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// The ids of all processes that can be seen.
pub(super) fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command stands in parentheses and may hold blanks.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// One line to the worker, who may be gone.
fn answer(line: &str) {
    let mut stdout = io::stdout().lock();
    drop(
        stdout
            .write_all(line.as_bytes())
            .and_then(|()| stdout.write_all(b"\n"))
            .and_then(|()| stdout.flush()),
    );
}
