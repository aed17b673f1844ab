//! A whole `prefect.yaml`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::entry::{self, DeploymentSpec};
use super::flows::Flows;
use super::placeholders::{fill_deployment, fill_pull_steps};
use crate::section::Section;
use crate::{Environment, Error, Place, file};

/// The file of schemas that is looked for beside a `prefect.yaml`.
const SCHEMAS: &str = "flows.json";

/// What to deploy.
#[derive(Debug, Clone)]
pub struct Project {
    /// The `prefect.yaml`.
    pub file: PathBuf,
    /// The schemas of the flows; `None`: `flows.json` beside the file, if there is one.
    pub schemas: Option<PathBuf>,
    /// Which deployments.
    pub selection: Selection,
}

/// Which deployments of a file.
#[derive(Debug, Clone)]
pub enum Selection {
    /// All of them.
    All,
    /// Those of these names, `deployment` or `flow/deployment`.
    Named(Vec<String>),
}

/// The selected deployments, and what the reader should know about the file.
///
/// # Errors
/// An unreadable or malformed file, a value that cannot be used, an environment variable that is not set, a name
/// that the file does not have.
pub fn load(
    project: &Project,
    environment: &Environment,
) -> Result<(Vec<DeploymentSpec>, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let flows = match schemas_of(project) {
        Some(path) => Flows::load(&path)?,
        None => Flows::default(),
    };
    let mut top = Section::new(Place::file(&project.file), file::yaml(&project.file)?)?;
    // Metadata, and a place for anchors.
    for key in ["name", "prefect-version", "definitions"] {
        top.take(key);
    }
    entry::ignore(&mut top, &mut warnings);
    let mut unset = Vec::new();
    let pull = match entry::steps_of(top.take("pull"))? {
        Some(steps) => {
            let place = top.place().key("pull");
            match fill_pull_steps(Value::Array(steps), &place, environment, &mut unset)? {
                Value::Array(steps) => Some(steps),
                _ => None,
            }
        }
        None => None,
    };
    let entries = selected(top.list("deployments")?, &project.selection, &flows)?;
    let mut filled = Vec::new();
    for (place, value) in entries {
        let value = fill_deployment(value, &place, environment, &mut unset)?;
        filled.push((place, value));
    }
    if !unset.is_empty() {
        return Err(Error::Environment { variables: unset });
    }
    let mut deployments = Vec::new();
    for (place, value) in filled {
        deployments.push(entry::read(place, value, pull.as_ref(), &flows, &mut warnings)?);
    }
    refuse_doubles(&project.file, &deployments)?;
    warnings.extend(top.unknown().map(|place| format!("{place}: unknown key, ignored")));
    Ok((deployments, warnings))
}

fn schemas_of(project: &Project) -> Option<PathBuf> {
    let beside = || Some(project.file.with_file_name(SCHEMAS)).filter(|path| path.exists());
    project.schemas.clone().or_else(beside)
}

/// The entries that are meant; their places say their names.
fn selected(
    entries: Vec<(Place, Value)>,
    selection: &Selection,
    flows: &Flows,
) -> Result<Vec<(Place, Value)>, Error> {
    let mut chosen = Vec::new();
    let mut known = Vec::new();
    let mut matched = Vec::new();
    for (place, value) in entries {
        let text = |key| value.get(key).and_then(Value::as_str).map(str::trim).unwrap_or_default();
        let name = text("name").to_owned();
        let flow = match text("flow_name") {
            "" => flows.of_entrypoint(text("entrypoint")).0,
            flow => flow.to_owned(),
        };
        let full = format!("{flow}/{name}");
        let wanted = match selection {
            Selection::All => true,
            Selection::Named(names) => {
                let hits = names.iter().filter(|wanted| **wanted == name || **wanted == full);
                let before = matched.len();
                matched.extend(hits.cloned());
                matched.len() > before
            }
        };
        known.push(name.clone());
        if wanted {
            let place = if name.is_empty() { place } else { place.named(&name) };
            chosen.push((place, value));
        }
    }
    if let Selection::Named(names) = selection
        && let Some(name) = names.iter().find(|name| !matched.contains(*name))
    {
        return Err(Error::NoSuchDeployment { name: name.clone(), known });
    }
    Ok(chosen)
}

fn refuse_doubles(file: &Path, deployments: &[DeploymentSpec]) -> Result<(), Error> {
    for (index, one) in deployments.iter().enumerate() {
        if deployments.iter().take(index).any(|other| other.flow == one.flow && other.name == one.name) {
            let problem = format!("{}/{} stands there twice", one.flow, one.name);
            return Err(Error::invalid(Place::file(file).key("deployments"), problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
