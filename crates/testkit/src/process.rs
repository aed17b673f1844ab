//! Supervised child processes.
//!
//! Every child leads a process group of its own. A watcher in that group waits on a pipe whose other end we
//! hold: when the handle is dropped, or this process dies in whatever way, the watcher kills the whole group,
//! grandchildren included. Because the watcher lives until then, the group's number cannot be taken over by
//! strangers, and killing it is always safe.
//!
//! `PREFECT_*` variables of the caller never reach a child: a developer's profile must not steer a test.

mod usage;

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;

pub use usage::{Usage, usage_of, usage_of_tree};

/// Replaces itself by the program, after it has left the watcher behind in the same process group.
const SUPERVISED: &str = "exec 3<&0 </dev/null
(read -r _ <&3; kill -s KILL 0) >/dev/null 2>&1 &
exec 3<&-
exec \"$@\"";

const POLL: Duration = Duration::from_millis(50);

/// Lines of output that an error message quotes.
const QUOTED_LINES: usize = 25;

/// A signal to one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGTERM, as container engines send it.
    Terminate,
    /// SIGKILL.
    Kill,
    /// SIGSTOP: the process stands still until SIGCONT.
    Stop,
    /// SIGCONT.
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "INT",
            Self::Terminate => "TERM",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

/// Output of a program that ran to its end.
#[derive(Clone, Debug)]
pub struct Output {
    command: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output; invalid UTF-8 is replaced.
    pub stdout: String,
    /// Standard error; invalid UTF-8 is replaced.
    pub stderr: String,
}

impl Output {
    /// Turns an exit status other than zero into an error that quotes the end of the output.
    pub fn success(self) -> Result<Self> {
        ensure!(
            self.status.success(),
            "`{}` ended with {}:\n{}\n{}",
            self.command,
            self.status,
            last_lines(&self.stdout, QUOTED_LINES),
            last_lines(&self.stderr, QUOTED_LINES)
        );
        Ok(self)
    }
}

/// A program to be started.
#[derive(Clone, Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Command {
    /// A program by path, or by name to be found in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), dir: None, log: None }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.env.extend(env.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Appends standard output and error to this file; without it a spawned process logs to nowhere.
    #[must_use]
    pub fn log_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// Starts the program in the background.
    pub fn spawn(&self) -> Result<Process> {
        let (stdout, stderr) = match &self.log {
            Some(path) => {
                let log = open_log(path)?;
                let second = log.try_clone().context("failed to share the log file")?;
                (Stdio::from(log), Stdio::from(second))
            }
            None => (Stdio::null(), Stdio::null()),
        };
        let (child, group) = self.start(stdout, stderr)?;
        Ok(Process { child, group, command: self.shown(), log: self.log.clone(), status: None })
    }

    /// Runs the program to its end, within `deadline`.
    pub async fn output(&self, deadline: Duration) -> Result<Output> {
        let (mut child, group) = self.start(Stdio::piped(), Stdio::piped())?;
        let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let run = async {
            let read_out = async {
                match &mut out {
                    Some(pipe) => pipe.read_to_end(&mut stdout).await.map(drop),
                    None => Ok(()),
                }
            };
            let read_err = async {
                match &mut err {
                    Some(pipe) => pipe.read_to_end(&mut stderr).await.map(drop),
                    None => Ok(()),
                }
            };
            tokio::try_join!(read_out, read_err)?;
            child.wait().await
        };
        let ended = timeout(deadline, run).await;
        group.kill();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match ended {
            Ok(status) => {
                let status = status.with_context(|| format!("failed to run `{}`", self.shown()))?;
                Ok(Output { command: self.shown(), status, stdout: text(&stdout), stderr: text(&stderr) })
            }
            Err(_) => bail!(
                "`{}` did not end within {deadline:?}; its last output:\n{}\n{}",
                self.shown(),
                last_lines(&text(&stdout), QUOTED_LINES),
                last_lines(&text(&stderr), QUOTED_LINES)
            ),
        }
    }

    fn start(&self, stdout: Stdio, stderr: Stdio) -> Result<(Child, Group)> {
        let program = find_program(&self.program)?;
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", SUPERVISED, "sh"]).arg(program).args(&self.args);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PREFECT_") {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.process_group(0).stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("failed to start `{}`", self.shown()))?;
        let leader = child.id().context("the child ended before it had a number")?;
        let lifeline = child.stdin.take();
        Ok((child, Group { leader, _lifeline: lifeline }))
    }

    /// Program and arguments, for messages.
    fn shown(&self) -> String {
        let words =
            std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str));
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// A running program. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    group: Group,
    command: String,
    log: Option<PathBuf>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Number of the process, which is the number of its group as well.
    pub fn pid(&self) -> u32 {
        self.group.leader
    }

    /// The file that holds its output.
    pub fn log_path(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// All output so far; empty without a log file.
    pub fn log(&self) -> String {
        self.log.as_ref().map_or_else(String::new, read_lossy)
    }

    /// The last lines of the output.
    pub fn tail(&self, lines: usize) -> String {
        last_lines(&self.log(), lines)
    }

    /// Whether the process has not ended yet.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_none()
    }

    /// What the process used so far, or `None` once it is gone.
    pub fn usage(&self) -> Option<Usage> {
        usage_of(self.pid())
    }

    /// Sends a signal to the process, not to its group.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        ensure!(self.is_running(), "`{}` has ended already", self.command);
        ensure!(send(signal, &self.pid().to_string()), "failed to signal `{}`", self.command);
        Ok(())
    }

    /// Waits for the end of the process, at most until `deadline`.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => {
                let status = status.with_context(|| format!("failed to wait for `{}`", self.command))?;
                self.status = Some(status);
                Ok(status)
            }
            Err(_) => {
                bail!("`{}` did not end within {deadline:?}:\n{}", self.command, self.tail(QUOTED_LINES))
            }
        }
    }

    /// Waits until the output contains `text`; an error when the process ends before.
    pub async fn wait_for_log(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let seen = timeout(deadline, async {
            loop {
                let running = self.is_running();
                if self.log().contains(text) {
                    return true;
                }
                if !running {
                    return false;
                }
                tokio::time::sleep(POLL).await;
            }
        })
        .await;
        match seen {
            Ok(true) => Ok(()),
            Ok(false) => {
                bail!("`{}` ended before it said {text:?}:\n{}", self.command, self.tail(QUOTED_LINES))
            }
            Err(_) => bail!(
                "`{}` did not say {text:?} within {deadline:?}:\n{}",
                self.command,
                self.tail(QUOTED_LINES)
            ),
        }
    }

    /// Ends the process: SIGTERM, and after `grace` SIGKILL. Whatever is left of its group is killed too.
    pub async fn stop(mut self, grace: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            self.signal(Signal::Terminate)?;
        }
        if let Ok(status) = self.wait(grace).await {
            self.group.kill();
            return Ok(status);
        }
        self.group.kill();
        self.wait(grace).await
    }

    /// Kills the whole group at once.
    pub fn kill(&self) {
        self.group.kill();
    }
}

/// A process group, killed when dropped.
#[derive(Debug)]
struct Group {
    leader: u32,
    /// Our end of the watcher's pipe. Never written to: its end is the message.
    _lifeline: Option<ChildStdin>,
}

impl Group {
    fn kill(&self) {
        send(Signal::Kill, &format!("-{}", self.leader));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal through the shell's own `kill`; false when there is nobody to receive it.
fn send(signal: Signal, target: &str) -> bool {
    std::process::Command::new("sh")
        .args(["-c", "kill -s \"$0\" -- \"$1\" 2>/dev/null", signal.name(), target])
        .status()
        .is_ok_and(|status| status.success())
}

/// Finds a program by path or in `PATH`.
pub(crate) fn find_program(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        ensure!(program.is_file(), "program {} does not exist", program.display());
        return Ok(program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("program {} is not in PATH", program.display()))
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// A file's text as far as it can be read.
pub(crate) fn read_lossy(path: impl AsRef<OsStr>) -> String {
    std::fs::read(Path::new(&path))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("failed to open the log file {}", path.display()))
}
