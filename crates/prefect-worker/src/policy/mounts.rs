//! The rules about what a container mounts.

use std::path::Path;

use serde_json::{Value, json};

use super::binds::{self, Wanted};
use super::file::Sections;
use super::glob;
use super::judge::{forbidden, is_empty, require, text};
use crate::launcher::LaunchError;

/// An entry of `Binds`: a directory of the host, a named volume or an anonymous one.
pub(super) fn volume(rules: &Sections, engine: Option<&Path>, bind: &str) -> Result<(), LaunchError> {
    let Some((source, rest)) = bind.split_once(':') else { return Ok(()) };
    let options = rest.split_once(':').map_or("", |(_, options)| options);
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let known = matches!(
            option,
            "ro" | "rw"
                | "nocopy"
                | "private"
                | "rprivate"
                | "slave"
                | "rslave"
                | "consistent"
                | "cached"
                | "delegated"
        );
        require(known, "mounts.bind", || format!("the option {option:?} of a volume changes the host"))?;
        read_only |= option == "ro";
    }
    source_allowed(rules, engine, source, read_only)
}

fn source_allowed(
    rules: &Sections,
    engine: Option<&Path>,
    source: &str,
    read_only: bool,
) -> Result<(), LaunchError> {
    if source.starts_with('/') {
        let wanted = Wanted { source, read_only };
        return binds::judge(&rules.mounts.bind, wanted, engine)
            .map_err(|reason| forbidden("mounts.bind", reason));
    }
    require(glob::any(&rules.mounts.volumes, source), "mounts.volumes", || {
        format!("the volume {source:?} is not in its list")
    })
}

pub(super) fn mount(rules: &Sections, engine: Option<&Path>, mount: &Value) -> Result<(), LaunchError> {
    let source = text(mount.get("Source"));
    let read_only = mount["ReadOnly"] == json!(true);
    let options = |name: &str| mount.get(name).and_then(Value::as_object).into_iter().flatten();
    match text(mount.get("Type")) {
        "tmpfs" => Ok(()),
        "bind" => {
            for (option, value) in options("BindOptions") {
                let allowed = match option.as_str() {
                    "Propagation" => {
                        matches!(text(Some(value)), "" | "private" | "rprivate" | "slave" | "rslave")
                    }
                    "NonRecursive" | "CreateMountpoint" | "ReadOnlyForceRecursive" => true,
                    // Also ReadOnlyNonRecursive: what is mounted below would stay writable.
                    _ => is_empty(value),
                };
                require(allowed, "mounts.bind", || format!("the option {option} of a mount is not allowed"))?;
            }
            let wanted = Wanted { source, read_only };
            binds::judge(&rules.mounts.bind, wanted, engine)
                .map_err(|reason| forbidden("mounts.bind", reason))
        }
        "volume" => {
            for (option, value) in options("VolumeOptions") {
                let allowed = matches!(option.as_str(), "NoCopy" | "Labels" | "Subpath") || is_empty(value);
                // A driver can mount anything of the host under the name of a volume.
                require(allowed, "mounts.volumes", || {
                    format!("the option {option} of a volume is not allowed")
                })?;
            }
            if source.is_empty() { Ok(()) } else { source_allowed(rules, engine, source, read_only) }
        }
        other => Err(forbidden("mounts.bind", format!("mounts of type {other:?} are not allowed"))),
    }
}
