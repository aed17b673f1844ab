//! What the operator of a host lets its worker do, whatever a deployment asks for.
//!
//! A policy looks at the final body of a container, after template, options and defaults, so that there is no
//! way around it. What it does not mention is not allowed; a field that no rule knows is refused.

mod binds;
mod file;
mod glob;
mod images;
mod judge;
mod mounts;

use std::fmt;
use std::path::{Path, PathBuf};

use bollard::models::ContainerCreateBody;

use crate::launcher::LaunchError;
use crate::launcher::docker::PullPolicy;

pub use file::PolicyError;
use file::Sections;

/// Billionths of a processor, of one processor.
const NANO: f64 = 1e9;

/// The rules of a policy file.
#[derive(Clone)]
pub struct Policy {
    path: PathBuf,
    rules: Sections,
    /// The socket of the worker's own engine.
    engine: Option<PathBuf>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A container that is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// Its body as the engine is to get it.
    pub(crate) body: &'a ContainerCreateBody,
    /// Networks it is connected to beside those in the body.
    pub(crate) further_networks: &'a [String],
    /// When its image is pulled.
    pub(crate) pull_policy: PullPolicy,
    /// The user of its image, once that is known.
    pub(crate) image_user: Option<&'a str>,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// It cannot be read, or says what no policy can say.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PolicyError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The policy of a text, which has to be right.
    #[cfg(test)]
    pub(crate) fn parsed(text: &str) -> Self {
        Self::parse(Path::new("policy.toml"), text).unwrap()
    }

    fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        Ok(Self { path: path.to_owned(), rules: Sections::parse(path, text)?, engine: None })
    }

    /// Where it comes from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Guards the socket of this engine too.
    #[must_use]
    pub(crate) fn with_engine(self, address: &str) -> Self {
        Self { engine: address.strip_prefix("unix://").map(PathBuf::from), ..self }
    }

    /// Gives a container the limits that it has to have and does not name.
    pub(crate) fn complete(&self, body: &mut ContainerCreateBody) {
        let limits = &self.rules.limits;
        let host = body.host_config.get_or_insert_default();
        let missing = |value: Option<i64>| value.is_none_or(|value| value <= 0);
        if missing(host.memory)
            && let Some(bytes) = limits.default_memory
        {
            host.memory = Some(bytes.0);
        }
        if missing(host.nano_cpus)
            && missing(host.cpu_quota)
            && let Some(cpus) = limits.default_cpus
        {
            #[expect(clippy::cast_possible_truncation, reason = "checked when the file was read")]
            let nanos = (cpus * NANO) as i64;
            host.nano_cpus = Some(nanos);
        }
        if missing(host.pids_limit)
            && let Some(pids) = limits.default_pids
        {
            host.pids_limit = Some(pids);
        }
    }

    /// Whether it has to know the user of an image to judge a container.
    pub(crate) fn needs_image_user(&self, body: &ContainerCreateBody) -> bool {
        let security = &self.rules.security;
        (!security.root || security.users.is_some()) && body.user.as_deref().is_none_or(str::is_empty)
    }

    /// Judges a container.
    ///
    /// # Errors
    /// [`LaunchError::Forbidden`] with the first rule that forbids it.
    pub(crate) fn judge(&self, request: Request<'_>) -> Result<(), LaunchError> {
        judge::judge(&self.rules, self.engine.as_deref(), request)
    }
}

#[cfg(test)]
mod tests;
