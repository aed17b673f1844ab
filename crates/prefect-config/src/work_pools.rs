//! Work pools: one TOML file each.
//!
//! ```toml
//! name = "archival-docker-workpool"
//! type = "docker"
//! base_job_template = "../job-templates/docker.json" # relative to this file
//! description = "…"                                  # optional, like everything below
//! concurrency_limit = 4                              # or "unlimited"
//!
//! [[queues]]
//! name = "default"
//! concurrency_limit = 2
//! priority = 1
//! description = "…"
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prefect_api::template::JobTemplate;
use prefect_api::work_pool::BaseJobTemplate;
use serde_json::Value;

use crate::section::{Section, number_of};
use crate::{Environment, Error, Place, file};

/// Replaces the base job template of every pool; a mere file name is looked for beside the one in the file.
const TEMPLATE_VARIABLE: &str = "PREFECT_JOB_TEMPLATE";

/// A work pool as it should be on the server. `None` leaves alone what is there.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkPoolSpec {
    /// The name.
    pub name: String,
    /// The type of its workers.
    pub kind: String,
    /// How a job is made of job variables.
    pub template: BaseJobTemplate,
    /// The description.
    pub description: Option<String>,
    /// Limit on concurrent runs.
    pub limit: Option<Limit>,
    /// Its queues; others that exist stay.
    pub queues: Vec<QueueSpec>,
}

/// A queue of a work pool as it should be. `None` leaves alone what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// The name.
    pub name: String,
    /// The description.
    pub description: Option<String>,
    /// Limit on concurrent runs.
    pub limit: Option<Limit>,
    /// Lower numbers go first.
    pub priority: Option<u32>,
}

/// A limit on concurrent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// As many as there are.
    Unlimited,
    /// This many at once; 0 stops the pool or queue.
    At(u32),
}

impl Limit {
    /// The limit as the server writes it: `None` is no limit.
    pub const fn wire(self) -> Option<u32> {
        match self {
            Self::Unlimited => None,
            Self::At(number) => Some(number),
        }
    }
}

/// The work pools of a directory, one for each `*.toml` in it, by file name.
///
/// # Errors
/// An unreadable or malformed file, an unknown key, a faulty template, two pools of one name, no pool at all.
pub(crate) fn load(directory: &Path, environment: &Environment) -> Result<Vec<WorkPoolSpec>, Error> {
    let mut pools: Vec<WorkPoolSpec> = Vec::new();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for path in toml_files(directory)? {
        let pool = load_file(&path, environment)?;
        let place = Place::file(&path).key("name");
        if let Some(other) = places.insert(pool.name.clone(), place.clone()) {
            return Err(Error::invalid(place, format!("{:?} is defined already, in {other}", pool.name)));
        }
        pools.push(pool);
    }
    if pools.is_empty() {
        return Err(Error::invalid(Place::file(directory), "there is no .toml file in it"));
    }
    Ok(pools)
}

fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |source| Error::Unreadable { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_file(path: &Path, environment: &Environment) -> Result<WorkPoolSpec, Error> {
    let mut table = Section::new(Place::file(path), file::toml(path)?)?;
    let name = name_of(&mut table)?;
    if name.starts_with("prefect") {
        let place = table.place().key("name");
        return Err(Error::invalid(place, "names that begin with \"prefect\" are reserved by the server"));
    }
    let kind = table.required_text("type")?;
    let template = table.required_text("base_job_template")?;
    let template = load_template(&template_path(path, &template, environment))?;
    let description = table.text("description")?;
    let limit = limit_of(&mut table)?;
    let mut queues: Vec<QueueSpec> = Vec::new();
    for (place, value) in table.list("queues")? {
        let queue = queue_of(Section::new(place.clone(), value)?)?;
        if queues.iter().any(|other| other.name == queue.name) {
            return Err(Error::invalid(place, format!("the queue {:?} stands here twice", queue.name)));
        }
        queues.push(queue);
    }
    table.refuse_unknown()?;
    Ok(WorkPoolSpec { name, kind, template, description, limit, queues })
}

fn queue_of(mut table: Section) -> Result<QueueSpec, Error> {
    let queue = QueueSpec {
        name: name_of(&mut table)?,
        description: table.text("description")?,
        limit: limit_of(&mut table)?,
        priority: table.number("priority", 1)?,
    };
    table.refuse_unknown()?;
    Ok(queue)
}

fn name_of(table: &mut Section) -> Result<String, Error> {
    let name = table.required_text("name")?;
    if name.contains(['/', '%', '&', '>', '<']) {
        return Err(Error::invalid(table.place().key("name"), "a name cannot hold any of / % & < >"));
    }
    Ok(name)
}

fn limit_of(table: &mut Section) -> Result<Option<Limit>, Error> {
    match table.take("concurrency_limit") {
        None => Ok(None),
        Some((_, Value::String(word))) if word == "unlimited" => Ok(Some(Limit::Unlimited)),
        Some((place, Value::String(word))) => {
            Err(Error::invalid(place, format!("it must be a whole number or \"unlimited\", not {word:?}")))
        }
        Some((place, value)) => Ok(Some(Limit::At(number_of(&place, &value, 0)?))),
    }
}

fn template_path(pool: &Path, declared: &str, environment: &Environment) -> PathBuf {
    let declared = pool.parent().unwrap_or(Path::new("")).join(declared);
    match environment.get(TEMPLATE_VARIABLE).map(Path::new) {
        None => declared,
        Some(name) if name.components().count() == 1 => declared.with_file_name(name),
        Some(path) => path.to_owned(),
    }
}

fn load_template(path: &Path) -> Result<BaseJobTemplate, Error> {
    let template: BaseJobTemplate = serde_json::from_value(file::json(path)?)
        .map_err(|error| Error::Malformed { path: path.to_owned(), source: Box::new(error) })?;
    JobTemplate::parse(&template).map_err(|source| Error::Template { path: path.to_owned(), source })?;
    Ok(template)
}

#[cfg(test)]
mod tests;
