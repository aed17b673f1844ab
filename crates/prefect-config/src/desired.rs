//! What the files say: all of them read and checked.

use std::path::PathBuf;

use crate::deploy::DeploymentSpec;
use crate::{
    Environment, Error, Secret, TagLimit, Variable, WorkPoolSpec, limits, secrets, variables, work_pools,
};

/// Where the configuration stands; what is `None` or empty is not touched on the server.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file of variables.
    pub variables: Option<PathBuf>,
    /// Environment variables that name files with secrets.
    pub secrets: Vec<String>,
    /// The file of tag limits.
    pub limits: Option<PathBuf>,
    /// The directory of work pools.
    pub work_pools: Option<PathBuf>,
}

impl Sources {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.variables.is_none()
            && self.secrets.is_empty()
            && self.limits.is_none()
            && self.work_pools.is_none()
    }
}

/// What should be on the server.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Variables.
    pub variables: Vec<Variable>,
    /// Secret blocks.
    pub secrets: Vec<Secret>,
    /// Tag limits.
    pub limits: Vec<TagLimit>,
    /// Work pools with their queues.
    pub work_pools: Vec<WorkPoolSpec>,
    /// Deployments.
    pub deployments: Vec<DeploymentSpec>,
}

impl Desired {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// The first fault of a file, a value or the environment.
    pub fn load(sources: &Sources, environment: &Environment) -> Result<Self, Error> {
        let mut desired = Self::default();
        if let Some(path) = &sources.variables {
            desired.variables = variables::load(path, environment)?;
        }
        for variable in &sources.secrets {
            desired.secrets.push(secrets::load(variable, environment)?);
        }
        if let Some(path) = &sources.limits {
            desired.limits = limits::load(path, environment)?;
        }
        if let Some(directory) = &sources.work_pools {
            desired.work_pools = work_pools::load(directory, environment)?;
        }
        Ok(desired)
    }
}
