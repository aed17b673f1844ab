//! How everything is built: static binaries for this machine, one target directory per profile.
//!
//! Tests and images share one build. Static linking needs an explicit target, or procedural macros would be
//! linked statically too; hence it is set here and not in `.cargo/config.toml`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::Profile;

/// Crates whose programs the demo and the images consist of.
const PROGRAMS: [&str; 5] = ["prefect-worker", "prefect-config", "archiver-flows", "testkit", "e2e"];

/// Cargo, set up to build static binaries for this machine.
pub(crate) struct Cargo {
    target: String,
    rustflags: String,
}

impl Cargo {
    pub(crate) fn new() -> Result<Self> {
        let output = Command::new("rustc").arg("-vV").output().context("failed to run rustc")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let target =
            text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let given = std::env::var("RUSTFLAGS").unwrap_or_default();
        let flag = "-C target-feature=+crt-static";
        let rustflags =
            if given.contains(flag) { given } else { format!("{given} {flag}").trim().to_owned() };
        Ok(Self { target: target.to_owned(), rustflags })
    }

    /// `cargo ARGUMENTS` in the workspace.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO"));
        command
            .current_dir(root())
            .args(arguments)
            .env("CARGO_BUILD_TARGET", &self.target)
            .env("RUSTFLAGS", &self.rustflags);
        command
    }

    /// Builds the programs and gives the directory that they are in.
    pub(crate) fn build(&self, profile: Profile) -> Result<PathBuf> {
        let mut arguments = vec!["build", "--locked"];
        match profile {
            Profile::Release => {
                arguments.extend(["--release", "--bins"]);
                arguments.extend(PROGRAMS.iter().flat_map(|name| ["--package", name]));
            }
            // The same build as the tests', which need all of it anyway.
            Profile::Dev => arguments.extend(["--workspace", "--all-targets"]),
        }
        let status = self.command(&arguments).status().context("failed to run cargo")?;
        ensure!(status.success(), "cargo {} failed", arguments.join(" "));
        let folder = if profile == Profile::Release { "release" } else { "debug" };
        Ok(target_directory().join(&self.target).join(folder))
    }
}

/// The project's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
