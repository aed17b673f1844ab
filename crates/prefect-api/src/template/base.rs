//! The template of a work pool and the job variables that fill it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::placeholder::{Kind, placeholders};
use super::{TemplateError, path, render::render};
use crate::work_pool::BaseJobTemplate;

/// A checked base job template: what jobs look like, and which variables may change that.
#[derive(Debug, Clone, PartialEq)]
pub struct JobTemplate {
    job_configuration: Map<String, Value>,
    properties: Map<String, Value>,
}

impl JobTemplate {
    /// Checks the template of a work pool.
    ///
    /// # Errors
    /// A missing section, or a placeholder for a variable that `variables.properties` does not declare.
    pub fn parse(document: &BaseJobTemplate) -> Result<Self, TemplateError> {
        if document.job_configuration.is_empty() {
            return Err(TemplateError::MissingSection { section: "job_configuration" });
        }
        if document.variables.is_empty() {
            return Err(TemplateError::MissingSection { section: "variables" });
        }
        let properties = document.variables.get("properties").and_then(Value::as_object);
        let template = Self {
            job_configuration: document.job_configuration.clone(),
            properties: properties.cloned().unwrap_or_default(),
        };
        template.check_placeholders()?;
        Ok(template)
    }

    /// The job configuration with defaults, `job_variables` and environment variables filled in.
    ///
    /// References to blocks and variables of the server are left for [`super::resolve`].
    ///
    /// # Errors
    /// A dotted job variable that contradicts another, or an `env` that is not an object.
    pub fn configure(
        &self,
        job_variables: &Map<String, Value>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Value, TemplateError> {
        let mut configuration = self.job_configuration.clone();
        let mut variables = self.defaults();

        // Default environment variables survive a deployment that sets its own.
        if let Some(defaults) = environment_of(&variables)? {
            match configuration.get_mut("env") {
                Some(Value::Object(fixed)) => fixed.extend(defaults),
                _ => {
                    configuration.insert("env".to_owned(), Value::Object(defaults));
                }
            }
        }
        variables.extend(expand_dotted(job_variables)?);
        if let Some(Value::Object(fixed)) = configuration.get_mut("env")
            && let Some(chosen) = environment_of(&variables)?
        {
            fixed.extend(chosen);
        }
        let rendered = render(&Value::Object(configuration), &variables, environment);
        Ok(rendered.unwrap_or_else(|| Value::Object(Map::new())))
    }

    /// Names of the variables a deployment may set.
    pub fn variable_names(&self) -> impl Iterator<Item = &str> {
        self.properties.keys().map(String::as_str)
    }

    /// Default values of the variables that have one; `null` counts as none.
    fn defaults(&self) -> Map<String, Value> {
        let default_of = |schema: &Value| schema.get("default").filter(|value| !value.is_null()).cloned();
        self.properties
            .iter()
            .filter_map(|(name, schema)| Some((name.clone(), default_of(schema)?)))
            .collect()
    }

    fn check_placeholders(&self) -> Result<(), TemplateError> {
        let mut names = BTreeSet::new();
        for value in self.job_configuration.values() {
            self.undeclared(value, &mut names);
        }
        if names.is_empty() {
            return Ok(());
        }
        Err(TemplateError::UndeclaredPlaceholders { names: names.into_iter().collect() })
    }

    fn undeclared(&self, value: &Value, names: &mut BTreeSet<String>) {
        match value {
            Value::String(text) => {
                for placeholder in placeholders(text).filter(|found| found.kind() == Kind::Standard) {
                    let root = placeholder.name.split(['.', '[']).next().unwrap_or_default();
                    if !self.properties.contains_key(placeholder.name) && !self.properties.contains_key(root)
                    {
                        names.insert(placeholder.name.to_owned());
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.undeclared(item, names)),
            Value::Object(object) => object.values().for_each(|item| self.undeclared(item, names)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// The job variables of a run: those of the flow run replace those of its deployment, except that `env` is
/// merged name by name.
pub fn merge_job_variables(
    deployment: &Map<String, Value>,
    flow_run: &Map<String, Value>,
) -> Map<String, Value> {
    let mut merged = deployment.clone();
    for (key, value) in flow_run {
        match (key.as_str(), merged.get_mut(key), value) {
            ("env", Some(Value::Object(environment)), Value::Object(over)) => {
                environment.extend(over.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            _ => {
                merged.insert(key.clone(), value.clone());
            }
        }
    }
    merged
}

/// `{"a.b": 1}` to `{"a": {"b": 1}}`; where both forms name the same thing, the nested one wins.
fn expand_dotted(job_variables: &Map<String, Value>) -> Result<Map<String, Value>, TemplateError> {
    let mut expanded = Map::new();
    for (key, value) in job_variables.iter().filter(|(key, _)| key.contains('.')) {
        path::set(&mut expanded, key, value.clone())
            .map_err(|()| TemplateError::PathConflict { key: key.clone() })?;
    }
    let plain = job_variables.iter().filter(|(key, _)| !key.contains('.'));
    path::deep_merge(&mut expanded, plain.map(|(key, value)| (key.clone(), value.clone())).collect());
    Ok(expanded)
}

/// The variable `env`, unless absent or empty.
fn environment_of(variables: &Map<String, Value>) -> Result<Option<Map<String, Value>>, TemplateError> {
    match variables.get("env") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(environment)) if environment.is_empty() => Ok(None),
        Some(Value::Object(environment)) => Ok(Some(environment.clone())),
        Some(_) => Err(TemplateError::EnvironmentNotObject),
    }
}
