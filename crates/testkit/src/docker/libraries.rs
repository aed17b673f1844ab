//! The shared libraries of programs that move into an image without a distribution.
//!
//! `ldd`, which every machine with glibc has, names them. They go into one directory that `LD_LIBRARY_PATH`
//! must name; the dynamic linker keeps its path, which is part of the platform's interface.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Command;

/// Directory of the libraries in an image.
pub(super) const LIBRARY_DIR: &str = "/opt/native";

/// Loaded by name when older C libraries resolve a host, so that `ldd` does not know of them.
const RESOLVERS: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// Files that one run of `ldd` looks at.
const BATCH: usize = 200;

const DEADLINE: Duration = Duration::from_mins(2);

/// The libraries that programs need, as place in the image and place on this machine. Those below `except` are
/// left out: packages that bring libraries find them by themselves.
pub(super) async fn shared_libraries(
    programs: &[&PathBuf],
    except: Option<&Path>,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for batch in programs.chunks(BATCH) {
        // It ends with an error when one of the files is static; what it says of the others holds.
        let output = Command::new("ldd")
            .args(batch.iter().copied())
            .output(DEADLINE)
            .await
            .context("failed to find the shared libraries of a program")?;
        for line in output.stdout.lines().filter_map(|line| line.strip_prefix('\t')) {
            let line = line.split(" (0x").next().unwrap_or_default();
            match line.split_once(" => ") {
                Some((name, path)) => {
                    let path = PathBuf::from(path);
                    let is_own = except.is_some_and(|except| path.starts_with(except));
                    if path.is_file() && !is_own {
                        found.insert(Path::new(LIBRARY_DIR).join(name), path);
                    }
                }
                None if line.starts_with('/') => {
                    found.insert(PathBuf::from(line), PathBuf::from(line));
                }
                None => {}
            }
        }
    }
    let libc = found.get(&Path::new(LIBRARY_DIR).join("libc.so.6")).cloned();
    for name in RESOLVERS {
        if let Some(path) = libc.as_ref().map(|libc| libc.with_file_name(name)).filter(|path| path.is_file())
        {
            found.insert(Path::new(LIBRARY_DIR).join(name), path);
        }
    }
    Ok(found.into_iter().collect())
}
