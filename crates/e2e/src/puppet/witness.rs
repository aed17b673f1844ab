//! What puppets said they did.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use prefect_api::state::StateType;
use serde::Serialize;
use testkit::proxy::Forwarder;

use super::{SOCKET, WITNESSES};

/// Lines of one run's witness, with the milliseconds of the Unix time in front.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Witness {
    lines: Vec<String>,
}

impl Witness {
    /// Adds what happened to the witness of a run. One small write, whole or not at all.
    pub(super) fn write(directory: &Path, run: &str, event: &str) -> Result<()> {
        let path = directory.join(run);
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("failed to open {}", path.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        file.write_all(format!("{now} {event}\n").as_bytes())?;
        Ok(())
    }

    /// The witness with these lines.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(lines: [&str; N]) -> Self {
        Self { lines: lines.map(str::to_owned).to_vec() }
    }

    /// How often the program was started.
    pub fn starts(&self) -> usize {
        self.events().filter(|(_, event)| *event == "start").count()
    }

    /// When it was started first, in milliseconds of the Unix time.
    pub fn started_at(&self) -> Option<u128> {
        self.events().find(|(_, event)| *event == "start").map(|(at, _)| at)
    }

    /// Whether the program came to the end that it chose itself.
    pub fn ended(&self) -> bool {
        self.events().any(|(_, event)| event.starts_with("end "))
    }

    /// Whether it ended because it got SIGTERM.
    pub fn terminated(&self) -> bool {
        self.events().any(|(_, event)| event == "terminated")
    }

    /// The final state that it reported and that the server took.
    pub fn reported(&self) -> Option<StateType> {
        let states = [StateType::Completed, StateType::Failed, StateType::Cancelled];
        let mut reports = self.events().filter_map(|(_, event)| event.strip_prefix("reported "));
        reports.find_map(|report| states.into_iter().find(|state| state.as_str() == report))
    }

    fn events(&self) -> impl Iterator<Item = (u128, &str)> {
        let split = self.lines.iter().filter_map(|line| line.split_once(' '));
        split.filter_map(|(at, event)| Some((at.parse().ok()?, event)))
    }
}

/// The directory that containers share with us: their witnesses, and the way to the server.
#[derive(Debug)]
pub struct Shared {
    directory: PathBuf,
    witnesses: PathBuf,
    _forwarder: Forwarder,
}

impl Shared {
    /// Makes the directory inside `parent`, with a socket that leads to the server at `server`.
    pub fn inside(parent: &Path, server: SocketAddr) -> Result<Self> {
        let directory = parent.join("puppet");
        let witnesses = directory.join(WITNESSES);
        std::fs::create_dir_all(&witnesses)
            .with_context(|| format!("failed to create {}", witnesses.display()))?;
        let forwarder = Forwarder::start(&directory.join(SOCKET), server)?;
        Ok(Self { directory, witnesses, _forwarder: forwarder })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the program of a run was started.
    pub fn has(&self, run: &str) -> bool {
        self.witnesses.join(run).exists()
    }

    /// What all runs that were started said, by run.
    pub fn witnesses(&self) -> Result<BTreeMap<String, Witness>> {
        let mut witnesses = BTreeMap::new();
        let entries = std::fs::read_dir(&self.witnesses);
        for entry in entries.with_context(|| format!("failed to list {}", self.witnesses.display()))? {
            let entry = entry?;
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines = text.lines().map(str::to_owned).collect();
            witnesses.insert(entry.file_name().to_string_lossy().into_owned(), Witness { lines });
        }
        Ok(witnesses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_witness_tells_what_a_puppet_did() {
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::inside(folder.path(), ([127, 0, 0, 1], 9).into()).unwrap();
        for event in ["start", "running", "reported COMPLETED", "end 0"] {
            Witness::write(&shared.witnesses, "a", event).unwrap();
        }
        for event in ["start", "start", "terminated"] {
            Witness::write(&shared.witnesses, "b", event).unwrap();
        }
        let read = shared.witnesses().unwrap();
        let (a, b) = (&read["a"], &read["b"]);
        assert_eq!((a.starts(), a.ended(), a.reported()), (1, true, Some(StateType::Completed)));
        assert_eq!((b.starts(), b.ended(), b.reported()), (2, false, None));
        assert!(b.terminated() && a.started_at().unwrap() <= b.started_at().unwrap());
    }
}
