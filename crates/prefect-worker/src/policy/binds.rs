//! Which directories of the host may be mounted.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

/// A directory or file of the host that may be mounted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bind {
    /// Its path, absolute.
    pub(super) source: PathBuf,
    /// Only for reading; true if not given.
    #[serde(default = "yes")]
    pub(super) read_only: bool,
    /// What is below it may be mounted too.
    #[serde(default)]
    pub(super) below: bool,
    /// It may hold the socket of a container engine, and with it the whole host.
    #[serde(default)]
    pub(super) engine_socket: bool,
}

const fn yes() -> bool {
    true
}

/// Where engines listen, under each name of `/run`.
const SOCKETS: [&str; 5] = [
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/user",
];
/// Names that such sockets have elsewhere.
const SOCKET_NAMES: [&str; 4] = ["docker.sock", "containerd.sock", "podman.sock", "crio.sock"];

/// What a job wants to mount.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) source: &'a str,
    pub(super) read_only: bool,
}

/// Whether a mount is allowed; the error says why not. `engine` is the socket of this worker's own engine.
pub(super) fn judge(binds: &[Bind], wanted: Wanted<'_>, engine: Option<&Path>) -> Result<(), String> {
    let source = plain(wanted.source)?;
    let mut reason = format!("no entry allows to mount {}", source.display());
    for bind in binds {
        match allowed(bind, &source, wanted.read_only, engine) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(better) => reason = better,
        }
    }
    Err(reason)
}

/// Whether this entry is about the source and allows it; an error if it is and does not.
fn allowed(bind: &Bind, source: &Path, read_only: bool, engine: Option<&Path>) -> Result<bool, String> {
    if source != bind.source && !(bind.below && source.starts_with(&bind.source)) {
        return Ok(false);
    }
    let shown = source.display();
    if bind.read_only && !read_only {
        return Err(format!("{shown} may be mounted for reading only"));
    }
    let mut real = source.to_owned();
    if source != bind.source {
        // Below it others may have put links, which the engine follows. Only who sees them can tell.
        let resolved = |path: &Path| path.canonicalize();
        let (Ok(inside), Ok(top)) = (resolved(source), resolved(&bind.source)) else {
            return Err(format!(
                "{shown} cannot be looked at by this worker, so a link in it could lead anywhere; mount {} into \
                 the worker at the same path, or make {shown} an entry of its own",
                bind.source.display()
            ));
        };
        if !inside.starts_with(&top) {
            return Err(format!("{shown} leads out of {} by a link", bind.source.display()));
        }
        real = inside;
    }
    if !bind.engine_socket && (reaches_engine(source, engine) || reaches_engine(&real, engine)) {
        return Err(format!(
            "{shown} is or holds the socket of a container engine, which its entry does not allow with \
             engine_socket"
        ));
    }
    Ok(true)
}

/// The path without doubled or trailing slashes; the error says what is not allowed in it.
pub(super) fn plain(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(format!("{path:?} is not an absolute path"));
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(format!("{path:?} has a part . or .."));
    }
    Ok(Path::new(path).components().filter(|part| !matches!(part, Component::CurDir)).collect())
}

fn reaches_engine(path: &Path, engine: Option<&Path>) -> bool {
    // /var/run is /run.
    let path =
        path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest));
    let known =
        SOCKETS.iter().any(|socket| Path::new(socket).starts_with(&path)) || path.starts_with("/run/user");
    let named = path.file_name().is_some_and(|name| SOCKET_NAMES.iter().any(|socket| name == *socket));
    // /var has /var/run.
    known || named || path == Path::new("/var") || engine.is_some_and(|engine| engine.starts_with(&path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn bind(source: impl Into<PathBuf>) -> Bind {
        Bind { source: source.into(), read_only: false, below: false, engine_socket: false }
    }

    fn verdict(bind: &Bind, source: &str, read_only: bool) -> Result<(), String> {
        judge(std::slice::from_ref(bind), Wanted { source, read_only }, Some(Path::new("/srv/engine/d.sock")))
    }

    #[test]
    fn an_entry_is_for_its_path_and_no_other() {
        let data = bind("/data");
        for source in ["/data", "/data/", "//data"] {
            assert_eq!(verdict(&data, source, false), Ok(()), "{source}");
        }
        for source in ["/", "/dat", "/data2", "/data/below", "/data/../etc", "/data/.", "data", "", "/./data"]
        {
            assert!(verdict(&data, source, true).is_err(), "{source}");
        }
        let reading = Bind { read_only: true, ..data };
        assert!(verdict(&reading, "/data", false).unwrap_err().contains("for reading only"));
        assert_eq!(verdict(&reading, "/data", true), Ok(()));
    }

    #[test]
    fn links_below_an_entry_are_followed_before_they_are_allowed() {
        let host = tempfile::tempdir().unwrap();
        let top = host.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("data/inside")).unwrap();
        symlink("/etc", top.join("data/out")).unwrap();
        symlink("inside", top.join("data/in")).unwrap();
        let data = Bind { below: true, ..bind(top.join("data")) };
        let of = |path: &str| verdict(&data, top.join(path).to_str().unwrap(), false);
        for good in ["data", "data/inside", "data/in"] {
            assert_eq!(of(good), Ok(()), "{good}");
        }
        assert!(of("data/out").unwrap_err().contains("by a link"));
        assert!(of("data/out/ssl").is_err());
        assert!(of("data/absent").unwrap_err().contains("cannot be looked at"));
        assert!(of("data2").unwrap_err().contains("no entry"));
    }

    #[test]
    fn the_engines_socket_needs_leave_of_its_own() {
        for source in [
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run",
            "/var/run",
            "/var",
            "/",
            "/srv/engine",
            "/srv/engine/d.sock",
            "/elsewhere/docker.sock",
            "/run/user/1000",
        ] {
            assert!(verdict(&bind(source), source, true).unwrap_err().contains("engine_socket"), "{source}");
            let named = Bind { engine_socket: true, ..bind(source) };
            assert_eq!(verdict(&named, source, true), Ok(()), "{source}");
        }
        let host = tempfile::tempdir().unwrap();
        let top = host.path().canonicalize().unwrap();
        std::fs::write(top.join("docker.sock"), "").unwrap();
        symlink("docker.sock", top.join("harmless")).unwrap();
        let all = Bind { below: true, ..bind(&top) };
        assert!(verdict(&all, top.join("harmless").to_str().unwrap(), true).is_err());
    }
}
