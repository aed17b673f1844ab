//! Where our binaries are: beside this program, or one directory up for tests.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The directory of the freshly built programs.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Those of the build that this program belongs to.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe().context("failed to find this program")?;
        let mut directory = own.parent().context("this program is in no directory")?;
        if directory.ends_with("deps") {
            directory = directory.parent().unwrap_or(directory);
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The program of this name.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if !path.is_file() {
            bail!("{name} is not built; run this through `cargo xtask`, which builds it");
        }
        Ok(path)
    }
}

/// The project's root.
pub fn project_root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
