//! The flows that can be deployed: their names and the schemas of their parameters.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::section::Section;
use crate::{Error, Place, file};

/// The functions of the Python archiver, and the flows that they say they are.
const PYTHON_FUNCTIONS: [(&str, &str); 4] = [
    ("archive_datasets_flow", "archive_datasetlist"),
    ("retrieve_datasets_flow", "retrieve_datasetlist"),
    ("create_test_dataset_flow", "create_test_dataset"),
    ("end_to_end_test_flow", "end_to_end_test_flow"),
];

/// Flows and the JSON schemas of their parameters.
#[derive(Debug, Default)]
pub(super) struct Flows(BTreeMap<String, Value>);

impl Flows {
    /// Reads `{"flow name": {schema of its parameters}}`.
    pub(super) fn load(path: &Path) -> Result<Self, Error> {
        let Value::Object(flows) = file::json(path)? else {
            return Err(Error::invalid(Place::file(path), "it must be an object of flow names and schemas"));
        };
        for (name, schema) in &flows {
            let mut schema = Section::new(Place::file(path).key(name), schema.clone())?;
            schema.entries("properties")?;
        }
        Ok(Self(flows.into_iter().collect()))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The schema of a flow's parameters.
    pub(super) fn schema(&self, flow: &str) -> Option<&Value> {
        self.0.get(flow)
    }

    /// The flow that an entrypoint leads to, and whether that is certain.
    ///
    /// `archive_datasetlist` is a flow's own name. Of `path/file.py:function` only Python knows the flow: it is
    /// the function's name, with dashes for underscores unless the function says otherwise.
    pub(super) fn of_entrypoint(&self, entrypoint: &str) -> (String, bool) {
        let Some((_, function)) = entrypoint.rsplit_once(':') else { return (entrypoint.to_owned(), true) };
        if self.0.contains_key(function) {
            return (function.to_owned(), true);
        }
        match PYTHON_FUNCTIONS.iter().find(|(name, _)| *name == function) {
            Some((_, flow)) => ((*flow).to_owned(), true),
            None => (function.replace('_', "-"), false),
        }
    }
}

/// The schema of a flow that nothing is known of: any parameters.
pub(super) fn open_schema() -> Value {
    json!({"title": "Parameters", "type": "object", "properties": {}})
}

#[cfg(test)]
mod tests {
    use super::Flows;

    #[test]
    fn an_entrypoint_leads_to_a_flow() {
        let flows = Flows([("known_flow".to_owned(), serde_json::json!({}))].into());
        let flow = |entrypoint: &str| flows.of_entrypoint(entrypoint);
        assert_eq!(flow("archive_datasetlist"), ("archive_datasetlist".to_owned(), true));
        assert_eq!(flow("./a/b.py:known_flow"), ("known_flow".to_owned(), true));
        assert_eq!(
            flow("./archiver/flows/archive_datasets_flow.py:archive_datasets_flow"),
            ("archive_datasetlist".to_owned(), true)
        );
        assert_eq!(flow("flows/main_flow.py:main_flow"), ("main-flow".to_owned(), false));
    }
}
