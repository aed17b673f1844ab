//! The virtual environment that Prefect runs from.
//!
//! A virtual environment holds its own path and cannot be moved, so it is made in place, under a lock file
//! beside it; a marker inside says that it is complete. What lacks the marker is made anew, or, where a user
//! named the directory, checked.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Command, find_program};

/// The version of Prefect that everything is measured against.
pub const VERSION: &str = "3.7.2";

/// A release of Prefect that we are tested with. Each is pinned: what a test run says must not change because
/// somebody published a package meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// The last of the oldest minor version that we support.
    Oldest,
    /// The one that everything is measured against, [`VERSION`].
    #[default]
    Reference,
    /// The newest one when this was written; raised by hand.
    Newest,
}

impl Release {
    /// Its number.
    pub const fn number(self) -> &'static str {
        match self {
            Self::Oldest => "3.4.25",
            Self::Reference => VERSION,
            Self::Newest => "3.9.1",
        }
    }

    /// What is installed. Servers of their time do not start with today's `FastAPI` and Starlette, and 3.4
    /// imports a package that it does not ask for.
    const fn requirements(self) -> &'static [&'static str] {
        match self {
            Self::Oldest => &["prefect==3.4.25", "fastapi<0.130", "starlette<1", "importlib_metadata"],
            Self::Reference => &["prefect==3.7.2", "fastapi<0.130", "starlette<1", "prefect-docker==0.7.3"],
            Self::Newest => &["prefect==3.9.1", "fastapi<0.151", "starlette<2"],
        }
    }
}

const MARKER: &str = ".ferryman-complete";
const INSTALL_DEADLINE: Duration = Duration::from_mins(20);
const CHECK_DEADLINE: Duration = Duration::from_mins(1);

/// A virtual environment with Prefect in it.
#[derive(Clone, Debug)]
pub struct Venv {
    dir: PathBuf,
    release: Release,
}

impl Venv {
    /// Finds the environment of the reference, or makes it: about a minute, once.
    pub async fn prepare() -> Result<Self> {
        Self::of(Release::Reference).await
    }

    /// Finds the environment of a release, or makes it. Others may make those of other releases meanwhile.
    pub async fn of(release: Release) -> Result<Self> {
        let given = std::env::var_os("FERRYMAN_VENV").filter(|dir| !dir.is_empty());
        let dir = match given {
            Some(mut dir) => {
                if release != Release::Reference {
                    dir.push(format!("-{}", release.number()));
                }
                std::path::absolute(dir)
                    .context("failed to resolve the directory that FERRYMAN_VENV names")?
            }
            None => cache_dir()?.join(format!("prefect-{}", release.number())),
        };
        let venv = Self { dir, release };
        if !venv.is_complete() {
            let _lock = venv.lock("lock").await?;
            if !venv.is_complete() {
                venv.complete().await?;
            }
        }
        Ok(venv)
    }

    /// The release that is in it.
    pub fn release(&self) -> Release {
        self.release
    }

    /// The directory of the environment.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// An executable of the environment.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// Its Python interpreter.
    pub fn python(&self) -> PathBuf {
        self.bin("python")
    }

    fn is_complete(&self) -> bool {
        self.dir.join(MARKER).is_file()
    }

    /// A directory for `PYTHONPATH` with a package and what it needs beside the environment: for the few programs that
    /// need more than that has. Made once; the environment itself stays as it is.
    pub async fn package(&self, requirement: &str) -> Result<PathBuf> {
        let mut prefix = self.dir.clone().into_os_string();
        prefix.push(format!("+{requirement}"));
        let prefix = PathBuf::from(prefix);
        let _lock = self.lock("package-lock").await?;
        if !prefix.join(MARKER).is_file() {
            if prefix.exists() {
                std::fs::remove_dir_all(&prefix)
                    .with_context(|| format!("failed to remove the incomplete {}", prefix.display()))?;
            }
            let freeze = Command::new(self.python()).args(["-m", "pip", "freeze", "--quiet"]);
            let installed = freeze.output(CHECK_DEADLINE).await?.success()?.stdout;
            std::fs::create_dir_all(&prefix)
                .with_context(|| format!("failed to create {}", prefix.display()))?;
            let constraints = prefix.join("constraints.txt");
            std::fs::write(&constraints, installed)
                .with_context(|| format!("failed to write {}", constraints.display()))?;
            let pip = self.pip().arg("--prefix").arg(&prefix).arg("--constraint").arg(&constraints);
            let added = pip.arg(requirement).output(INSTALL_DEADLINE).await?.success();
            added.with_context(|| format!("failed to install {requirement} from PyPI"))?;
            std::fs::write(prefix.join(MARKER), requirement)
                .with_context(|| format!("failed to mark {}", prefix.display()))?;
        }
        let code = "import sysconfig, sys; print(sysconfig.get_path('purelib', vars={'base': sys.argv[1]}))";
        let path = Command::new(self.python()).args(["-c", code]).arg(&prefix);
        Ok(PathBuf::from(path.output(CHECK_DEADLINE).await?.success()?.stdout.trim()))
    }

    fn pip(&self) -> Command {
        Command::new(self.python()).args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--quiet",
        ])
    }

    /// Takes a lock beside the environment; it is free again when the file is dropped.
    pub(crate) async fn lock(&self, name: &str) -> Result<File> {
        let mut path = self.dir.clone().into_os_string();
        path.push(format!(".{name}"));
        let path = PathBuf::from(path);
        tokio::task::spawn_blocking(move || {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("failed to create {}", parent.display()))?;
            }
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("failed to open {}", path.display()))?;
            file.lock().with_context(|| format!("failed to lock {}", path.display()))?;
            Ok(file)
        })
        .await
        .context("failed to wait for the lock")?
    }

    async fn complete(&self) -> Result<()> {
        let version = self.release.number();
        if self.bin("prefect").is_file() && self.python().is_file() {
            let found = self.installed_version().await?;
            ensure!(
                found == version,
                "{} holds Prefect {found}, not {version}; remove it, or let FERRYMAN_VENV name another directory",
                self.dir.display()
            );
        } else {
            self.create().await?;
        }
        // Where a user's own environment cannot be written to, it is simply checked again next time.
        if let Err(error) = std::fs::write(self.dir.join(MARKER), version) {
            tracing::debug!(%error, dir = %self.dir.display(), "could not mark the environment as complete");
        }
        Ok(())
    }

    async fn create(&self) -> Result<()> {
        let python = find_program(Path::new("python3")).context(
            "Python is needed to run the Prefect server. Install it (Debian: apt-get install python3 \
             python3-venv), or let FERRYMAN_VENV name an environment that holds Prefect",
        )?;
        if self.dir.exists() {
            let is_ours = self.dir.join("pyvenv.cfg").is_file() || is_empty(&self.dir);
            ensure!(
                is_ours,
                "{} is no virtual environment; let FERRYMAN_VENV name another directory",
                self.dir.display()
            );
            std::fs::remove_dir_all(&self.dir)
                .with_context(|| format!("failed to remove the incomplete {}", self.dir.display()))?;
        }
        let version = self.release.number();
        tracing::info!(dir = %self.dir.display(), "installing Prefect {version} from PyPI");
        Command::new(python)
            .args(["-m", "venv"])
            .arg(&self.dir)
            .output(INSTALL_DEADLINE)
            .await?
            .success()
            .context("failed to make a virtual environment; on Debian: apt-get install python3-venv")?;
        let pip = self.pip().args(self.release.requirements().iter().copied());
        let installed = match pip.output(INSTALL_DEADLINE).await {
            Ok(output) => output.success().map(drop),
            Err(error) => Err(error),
        };
        installed.with_context(|| {
            format!(
                "failed to install Prefect {version} from PyPI (it needs Python 3.10 or newer and a way to \
                 the package index); to use an installed one, let FERRYMAN_VENV name its environment"
            )
        })
    }

    async fn installed_version(&self) -> Result<String> {
        let output = Command::new(self.python())
            .args(["-c", "import importlib.metadata as m; print(m.version('prefect'))"])
            .output(CHECK_DEADLINE)
            .await?
            .success()
            .with_context(|| format!("failed to find Prefect in {}", self.dir.display()))?;
        Ok(output.stdout.trim().to_owned())
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Cargo's target directory: the outermost directory around this executable that cargo has tagged as a cache.
fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return std::path::absolute(dir).context("failed to resolve CARGO_TARGET_DIR");
    }
    let executable = std::env::current_exe().context("failed to find this executable")?;
    let tagged = executable.ancestors().filter(|dir| dir.join("CACHEDIR.TAG").is_file()).last();
    match tagged {
        Some(dir) => Ok(dir.to_owned()),
        None => bail!(
            "{} does not lie in a cargo target directory; let FERRYMAN_VENV name a directory for Prefect",
            executable.display()
        ),
    }
}
