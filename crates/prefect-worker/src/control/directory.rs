//! Where control sockets are: a directory that nobody else can write to.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Error;

/// Sockets have short paths (108 bytes), of which the name of a socket takes 38.
const LONGEST: usize = 69;

/// The directories that may hold sockets, best first. One that the user names is the only one.
pub(super) fn candidates(environment: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let variable = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(chosen) = variable("PREFECT_WORKER_RUNTIME_DIR") {
        return vec![chosen];
    }
    let own = format!("prefect-worker-{}", own_uid());
    let runtime = variable("XDG_RUNTIME_DIR").map(|directory| directory.join("prefect-worker"));
    let rest = [Path::new("/run").join(&own), std::env::temp_dir().join(own)];
    runtime.into_iter().chain(rest).collect()
}

/// Makes the first of them that can be had.
pub(super) fn make(candidates: &[PathBuf]) -> Result<PathBuf, Error> {
    let mut last = None;
    for path in candidates {
        match make_one(path) {
            Ok(()) => return Ok(path.clone()),
            Err(problem) => last = Some(Error::Directory { path: path.clone(), problem }),
        }
    }
    Err(last
        .unwrap_or_else(|| Error::Directory { path: PathBuf::new(), problem: "none is known".to_owned() }))
}

fn make_one(path: &Path) -> Result<(), String> {
    if path.as_os_str().len() > LONGEST {
        return Err(format!("its path is longer than {LONGEST} bytes, too long for a socket"));
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.to_string()),
    }
    is_private(path)
}

/// Whether only we can put sockets there: in a shared temporary directory others may have been first.
pub(super) fn is_private(path: &Path) -> Result<(), String> {
    let metadata = std::fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err("it is no directory".to_owned());
    }
    let (owner, own) = (metadata.uid(), own_uid());
    if owner != own && own != 0 {
        return Err(format!("it belongs to user {owner}, and this is user {own}"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("others can write to it; its mode should be 0700".to_owned());
    }
    Ok(())
}

/// The user that this process runs as.
fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_users_choice_is_the_only_one_and_else_the_runtime_directory_comes_first() {
        let chosen = |name: &str| (name == "PREFECT_WORKER_RUNTIME_DIR").then(|| "/a".to_owned());
        assert_eq!(candidates(&chosen), [PathBuf::from("/a")]);
        let runtime = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| "/run/user/1".to_owned());
        let found = candidates(&runtime);
        assert_eq!(found.first(), Some(&PathBuf::from("/run/user/1/prefect-worker")));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_and_the_next_one_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (open, private) = (dir.path().join("open"), dir.path().join("private"));
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = make(std::slice::from_ref(&open)).unwrap_err().to_string();
        assert!(error.contains("others can write to it"), "{error}");
        assert_eq!(make(&[open, private.clone()]).unwrap(), private);
        assert_eq!(std::fs::metadata(&private).unwrap().mode() & 0o777, 0o700);
        let long = dir.path().join("x".repeat(100));
        assert!(make(&[long]).unwrap_err().to_string().contains("too long"));
    }
}
