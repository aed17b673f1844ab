//! Files and directories of the engine's host that jobs mount: there, and what they are thought to be.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use super::deployments::{Wanted, users};
use super::mountinfo::{Mount, mount_of};
use super::vantage::{self, Vantage};
use super::{Finding, Probe, in_time};
use crate::amount::size;
use crate::error::chain;
use crate::launcher::docker::probe::Order;
use crate::launcher::docker::survey::Facts;
use crate::launcher::{DockerLauncher, LaunchError};

/// Where a probe sees the root of the host's files.
const ROOT: &str = "/probe/host";
const REMEDY: &str = "make it, or mount what belongs there, or correct the job variables volumes and mounts";

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sight {
    path: PathBuf,
    directory: bool,
    /// Whether nothing is in the directory; `None` if that cannot be read.
    empty: Option<bool>,
    mount: Option<Mount>,
    /// Bytes that are free, and all bytes of the file system.
    space: Option<(u64, u64)>,
}

impl Sight {
    /// Looks at a path, as this process sees it.
    fn of(path: &Path, table: &str) -> std::io::Result<Self> {
        let real = path.canonicalize()?;
        let directory = real.is_dir();
        let empty = std::fs::read_dir(&real).ok().map(|mut entries| entries.next().is_none());
        let space = statvfs(&real).ok().map(|space| {
            let block = space.fragment_size();
            (space.blocks_available().saturating_mul(block), space.blocks().saturating_mul(block))
        });
        let mount = mount_of(table, &real);
        Ok(Self { path: path.to_owned(), directory, empty: empty.filter(|_| directory), mount, space })
    }
}

fn table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// What is at these paths, a line of JSON each: the part of a probe's container.
pub(crate) fn show(paths: &[PathBuf]) -> String {
    let table = table();
    let sights = paths.iter().filter_map(|path| Sight::of(path, &table).ok());
    sights.filter_map(|sight| serde_json::to_string(&sight).ok()).map(|line| line + "\n").collect()
}

fn show_command(paths: &[String]) -> Vec<String> {
    ["prefect-worker", "probe-mounts"].into_iter().map(str::to_owned).chain(paths.iter().cloned()).collect()
}

/// What was seen of the host's files.
#[derive(Default)]
struct View {
    /// What is at each source that exists.
    sights: BTreeMap<String, Sight>,
    /// Sources that do not exist.
    missing: Vec<String>,
    /// The file system of the host's root directory.
    root: Option<Mount>,
}

/// Looks at what the jobs mount.
pub(super) async fn look(
    docker: &DockerLauncher,
    facts: Option<&Facts>,
    wanted: &Wanted,
    probe: &Probe,
    findings: &mut Vec<Finding>,
) {
    let sources: Vec<String> = wanted.binds.keys().cloned().collect();
    if sources.is_empty() {
        return;
    }
    let viewed = match vantage::find(docker, facts, probe).await {
        Vantage::Host => from_here(sources).await,
        Vantage::Container(image) => through(docker, &image, &sources).await,
        Vantage::Nowhere(why, how) => Err(Finding::unchecked("mount", why, how)),
    };
    for (source, deployments) in &wanted.binds {
        let finding = match &viewed {
            Ok(view) => judge(source, view),
            Err(finding) => finding.clone(),
        };
        findings.push(finding.about(&format!("{source} ({})", users(deployments))));
    }
}

/// A look as this process sees the files. A share whose server is away may never answer.
async fn from_here(sources: Vec<String>) -> Result<View, Finding> {
    let looking = tokio::task::spawn_blocking(move || {
        let table = table();
        let mut view = View { root: mount_of(&table, Path::new("/")), ..View::default() };
        for source in sources {
            match Sight::of(Path::new(&source), &table) {
                Ok(sight) => drop(view.sights.insert(source, sight)),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    view.missing.push(source);
                }
                // Told as not seen.
                Err(_) => {}
            }
        }
        view
    });
    match in_time(looking).await {
        Ok(Ok(view)) => Ok(view),
        Ok(Err(_)) => Err(Finding::failed("mount", "the look at it broke off", REMEDY)),
        Err(silence) => Err(hanging(&silence)),
    }
}

fn hanging(silence: &str) -> Finding {
    let remedy = "is the server of a share away? Look at findmnt and dmesg on the host";
    Finding::failed("mount", format!("one of the mounts hangs: {silence}"), remedy)
}

/// A look from inside a container.
async fn through(docker: &DockerLauncher, image: &str, sources: &[String]) -> Result<View, Finding> {
    let place = |number: usize| format!("/probe/{number}");
    let mut all: Vec<_> =
        sources.iter().enumerate().map(|(number, source)| (source.clone(), place(number))).collect();
    all.push(("/".to_owned(), ROOT.to_owned()));
    let probed = docker.probe(Order { image, command: show_command, sources: all }).await;
    let probed = probed.map_err(|error| match error {
        LaunchError::Deadline { .. } => hanging(&error.to_string()),
        error => Finding::unchecked(
            "mount",
            format!("failed to {}", chain(&error)),
            "name an image in which there is a prefect-worker: --probe-image IMAGE",
        ),
    })?;
    let mut seen: BTreeMap<PathBuf, Sight> = probed
        .lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Sight>(line).ok())
        .map(|sight| (sight.path.clone(), sight))
        .collect();
    let root = seen.remove(Path::new(ROOT)).and_then(|sight| sight.mount);
    let numbered = sources.iter().enumerate();
    let sights = numbered.filter_map(|(number, source)| {
        seen.remove(Path::new(&place(number))).map(|sight| (source.clone(), sight))
    });
    Ok(View { sights: sights.collect(), missing: probed.missing, root })
}

/// What a source of a bind is.
fn judge(source: &str, view: &View) -> Finding {
    let same = |missing: &String| missing.trim_end_matches('/') == source.trim_end_matches('/');
    if view.missing.iter().any(same) {
        return Finding::failed(
            "mount",
            "it does not exist on the host: with volumes the engine makes an empty directory there, with mounts runs fail",
            REMEDY,
        );
    }
    let Some(sight) = view.sights.get(source) else {
        return Finding::unchecked("mount", "it could not be seen", "look at it on the host, as root");
    };
    if !sight.directory {
        return Finding::ok("mount", "it is there; no directory");
    }
    let on_root = match (&sight.mount, &view.root) {
        (Some(mount), Some(root)) => mount.device == root.device,
        _ => false,
    };
    let mount = sight.mount.as_ref();
    let what = mount.map_or_else(
        || "an unknown file system".to_owned(),
        |mount| format!("{} of {}", mount.kind, mount.source),
    );
    let space = sight.space.filter(|(_, all)| *all > 0);
    let room = space.map(|(free, all)| format!(", {} of {} free", size(free), size(all))).unwrap_or_default();
    if on_root && sight.empty == Some(true) {
        return Finding::warning(
            "mount",
            format!("it is an empty directory on the host's root disk ({what}{room})"),
            "if a share belongs there, it is not mounted: mount it (findmnt, systemctl status), else data go to the \
             root disk",
        );
    }
    let place = if on_root { "on the host's root disk" } else { "a file system of its own" };
    let found = format!("{place} ({what}{room})");
    match space {
        Some((free, all)) if free < all / 100 => {
            Finding::warning("mount", format!("it is almost full: {found}"), "free space there")
        }
        _ => Finding::ok("mount", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn mount(device: &str) -> Option<Mount> {
        let table = format!("24 1 {device} / / rw - ext4 /dev/sda1 rw");
        mount_of(&table, Path::new("/"))
    }

    fn sight(device: &str, empty: Option<bool>, space: (u64, u64)) -> Sight {
        Sight {
            path: PathBuf::from("/lts"),
            directory: true,
            empty,
            mount: mount(device),
            space: Some(space),
        }
    }

    #[test]
    fn an_empty_directory_on_the_root_disk_is_no_mounted_share() {
        for (sight, verdict) in [
            (sight("8:1", Some(true), (50, 100)), Verdict::Warning),
            (sight("8:1", Some(false), (50, 100)), Verdict::Ok),
            (sight("8:1", None, (50, 100)), Verdict::Ok),
            (sight("0:51", Some(true), (50, 100)), Verdict::Ok),
            (sight("0:51", Some(false), (0, 100)), Verdict::Warning),
            (Sight { directory: false, ..sight("8:1", None, (50, 100)) }, Verdict::Ok),
        ] {
            let sights = BTreeMap::from([("/lts".to_owned(), sight)]);
            let view = View { sights, missing: vec!["/gone".to_owned()], root: mount("8:1") };
            let finding = judge("/lts", &view);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert_eq!(judge("/gone/", &view).verdict, Verdict::Failed);
            assert_eq!(judge("/unseen", &view).verdict, Verdict::NotChecked);
        }
    }

    #[test]
    fn a_probe_tells_what_it_sees_of_each_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let see = || {
            let paths = [directory.path().to_owned(), file.clone(), PathBuf::from("/no/such")];
            let text = show(&paths);
            text.lines().map(|line| serde_json::from_str::<Sight>(line).unwrap()).collect::<Vec<_>>()
        };
        let seen = see();
        assert_eq!((seen.len(), seen[0].directory, seen[0].empty), (1, true, Some(true)));
        assert!(seen[0].mount.is_some() && seen[0].space.is_some());
        std::fs::write(&file, "x").unwrap();
        let seen = see();
        assert_eq!((seen.len(), seen[0].empty), (2, Some(false)));
        assert_eq!((seen[1].directory, seen[1].empty), (false, None));
    }
}
