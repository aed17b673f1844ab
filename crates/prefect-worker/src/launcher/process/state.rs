//! What is kept of processes beyond the life of a worker: a directory per attempt.
//!
//! It holds the [`Record`], the [`Exit`] once there is one, the output, and two named pipes that connect
//! workers with the attempt's supervisor. All of it belongs to the worker's user alone, and none of it is
//! secret.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prefect_api::id::FlowRunId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::Attempt;

const RECORD: &str = "record.json";
const EXIT: &str = "exit.json";
const STARTED: &str = "started";
/// Gives the directory an identity that outlives workers and reboots.
const PLACE: &str = "place";
/// A directory without a record is somebody's who is making it, or of somebody who died over that.
const UNFINISHED: Duration = Duration::from_mins(10);

/// What a process is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// What the worker must remember.
    pub(super) attempt: Attempt,
    /// The name of the job.
    pub(super) name: String,
    /// The host, as operators know it.
    pub(super) host: String,
    /// The id of the program's process.
    pub(super) pid: i32,
    /// When it was made.
    pub(super) created: Timestamp,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exit {
    /// The exit code; 128 + n after signal n.
    pub(super) code: i64,
    /// The kernel killed it because memory ran out.
    #[serde(default)]
    pub(super) out_of_memory: bool,
    /// The most memory that one of its processes had, in bytes.
    pub(super) peak_memory: Option<u64>,
    /// The memory that it could have, in bytes.
    #[serde(default)]
    pub(super) memory_limit: Option<u64>,
    /// When it was seen to end.
    pub(super) ended: Timestamp,
}

/// The directories of all attempts on this machine.
#[derive(Debug)]
pub(super) struct StateDirectory {
    root: PathBuf,
    /// What identifies it.
    pub(super) place: String,
}

impl StateDirectory {
    /// Opens it, and makes it if there is none.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        std::fs::set_permissions(root, Permissions::from_mode(0o700))?;
        // The supervisors have working directories of their own.
        let root = root.canonicalize()?;
        let directory = Self { place: place(&root)?, root };
        directory.remove_unfinished()?;
        Ok(directory)
    }

    /// A new directory for an attempt to run this run.
    pub(super) fn allocate(&self, run: FlowRunId) -> io::Result<Slot> {
        let [a, b, c, d, ..] = Uuid::new_v4().into_bytes();
        let id = format!("{run}-{a:02x}{b:02x}{c:02x}{d:02x}");
        let slot = Slot { path: self.root.join(&id), id };
        DirBuilder::new().mode(0o700).create(&slot.path)?;
        let pipes = [slot.orders(), slot.life()];
        for pipe in pipes {
            mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Ok(slot)
    }

    /// The directory of the attempt with this id; nothing says that it exists.
    pub(super) fn slot(&self, id: &str) -> Slot {
        // Ids come from our own records; a path would lead elsewhere.
        let id = id.replace(['/', '\0'], "_");
        Slot { path: self.root.join(&id), id }
    }

    /// The directories of all attempts.
    pub(super) fn slots(&self) -> io::Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            if let (true, Ok(id)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
                slots.push(Slot { path: entry.path(), id });
            }
        }
        Ok(slots)
    }

    /// Whether files can be made here.
    pub(super) fn check(&self) -> io::Result<()> {
        place(&self.root)?;
        let probe = self.root.join(format!(".probe-{}", Uuid::new_v4()));
        write_new(&probe, b"")?;
        std::fs::remove_file(probe)
    }

    /// Removes what workers left that died while they made or removed an attempt's directory.
    fn remove_unfinished(&self) -> io::Result<()> {
        for slot in self.slots()? {
            let made = std::fs::metadata(&slot.path).and_then(|metadata| metadata.modified());
            let old = made
                .is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > UNFINISHED));
            if old && slot.record()?.is_none() && !slot.is_supervised()? {
                slot.remove()?;
            }
        }
        Ok(())
    }
}

/// The directory of one attempt.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// The launcher's id of the attempt.
    pub(super) id: String,
    path: PathBuf,
}

impl Slot {
    /// The one at this path.
    pub(super) fn at(path: PathBuf) -> Self {
        let id = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { id, path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The pipe through which the supervisor gets its orders.
    pub(super) fn orders(&self) -> PathBuf {
        self.path.join("orders")
    }

    /// The pipe that the supervisor keeps open for as long as it lives.
    pub(super) fn life(&self) -> PathBuf {
        self.path.join("life")
    }

    /// Makes the working directory of a program that has none of its own.
    pub(super) fn make_work(&self) -> io::Result<PathBuf> {
        let path = self.path.join("work");
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }

    /// What the attempt is for; `None` if there is no such attempt.
    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        self.read(RECORD)
    }

    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write(RECORD, record)
    }

    /// How it ended, if that is known.
    pub(super) fn exit(&self) -> io::Result<Option<Exit>> {
        self.read(EXIT)
    }

    pub(super) fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        self.write(EXIT, exit)
    }

    /// Whether somebody has wanted it to start.
    pub(super) fn is_started(&self) -> bool {
        self.path.join(STARTED).exists()
    }

    /// Writes down that it is to start.
    pub(super) fn mark_started(&self) -> io::Result<()> {
        match write_new(&self.path.join(STARTED), b"") {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.path)?.sync_all(),
        }
    }

    /// Whether a supervisor lives: only it has the pipe open for reading.
    pub(super) fn is_supervised(&self) -> io::Result<bool> {
        let write = OpenOptions::new()
            .write(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(self.orders());
        match write {
            Ok(_) => Ok(true),
            Err(error) if nobody_there(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes everything. The record goes first: what is left without one is nobody's.
    pub(super) fn remove(&self) -> io::Result<()> {
        for removed in [std::fs::remove_file(self.path.join(RECORD)), std::fs::remove_dir_all(&self.path)] {
            match removed {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match std::fs::read(self.path.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file has either the whole content or is not there, also after a loss of power.
    fn write<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        let temporary = self.path.join(format!(".{name}"));
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => write_new(&temporary, &serde_json::to_vec(content)?)?,
        }
        std::fs::rename(&temporary, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }
}

/// Whether an attempt to order says that there is no supervisor.
pub(super) fn nobody_there(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ENXIO as i32)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The identity of the directory, which the first worker gives it.
fn place(root: &Path) -> io::Result<String> {
    let path = root.join(PLACE);
    let temporary = root.join(format!(".{PLACE}-{}", Uuid::new_v4()));
    if !path.exists() {
        write_new(&temporary, Uuid::new_v4().to_string().as_bytes())?;
        // Of several workers that start at once one wins.
        match std::fs::hard_link(&temporary, &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => std::fs::remove_file(&temporary)?,
        }
    }
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let attempt = Attempt::new(FlowRunId::generate(), "pool", "w");
        Record { attempt, name: "n".to_owned(), host: "h".to_owned(), pid: 7, created: Timestamp::now() }
    }

    #[test]
    fn a_record_is_there_until_it_is_removed_and_nobody_else_can_read_it() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("state");
        let directory = StateDirectory::open(&root).unwrap();
        let record = record();
        let slot = directory.allocate(record.attempt.flow_run_id).unwrap();
        assert_eq!(slot.record().unwrap(), None);
        slot.write_record(&record).unwrap();
        slot.mark_started().unwrap();
        slot.mark_started().unwrap();

        let later = StateDirectory::open(&root).unwrap();
        assert_eq!(later.place, directory.place);
        let [found] = later.slots().unwrap().try_into().unwrap();
        assert_eq!((found.record().unwrap(), found.is_started()), (Some(record), true));
        assert!(!found.is_supervised().unwrap());
        for path in [root.clone(), found.path().to_owned(), found.path().join(RECORD), found.orders()] {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
        }
        found.remove().unwrap();
        found.remove().unwrap();
        assert!(later.slots().unwrap().is_empty());
    }

    #[test]
    fn what_a_dead_worker_left_half_made_goes_when_it_is_old() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = StateDirectory::open(temporary.path()).unwrap();
        let young = directory.allocate(FlowRunId::generate()).unwrap();
        let old = directory.allocate(FlowRunId::generate()).unwrap();
        let long_ago = SystemTime::now() - UNFINISHED * 2;
        File::open(old.path()).unwrap().set_modified(long_ago).unwrap();
        StateDirectory::open(temporary.path()).unwrap();
        assert!(young.path().exists() && !old.path().exists());
    }

    #[test]
    fn an_id_is_no_path() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = StateDirectory::open(&temporary.path().join("state")).unwrap();
        let slot = directory.slot("../elsewhere");
        assert_eq!(slot.path().parent().unwrap(), temporary.path().join("state").canonicalize().unwrap());
    }
}
