//! How the base job template of a pool differs in its fields from the one that this worker would make.

use std::fmt;

use prefect_api::work_pool::BaseJobTemplate;
use serde_json::{Map, Value};

/// The differences. Values and descriptions are the pool's own affair; names decide what a deployment can set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drift {
    /// Variables of ours that the pool's template lacks: deployments cannot set them.
    pub(crate) missing: Vec<String>,
    /// Parts of the pool's job configuration that ours does not have: perhaps nobody obeys them.
    pub(crate) unknown: Vec<String>,
}

impl Drift {
    /// What the pool's template lacks of ours, and has beyond it. An empty one is no template, and has none.
    pub(crate) fn between(ours: &BaseJobTemplate, pools: &BaseJobTemplate) -> Self {
        if pools.is_empty() {
            return Self::default();
        }
        let variables = |template: &BaseJobTemplate| -> Map<String, Value> {
            template.variables.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
        };
        Self {
            missing: beyond(&variables(ours), &variables(pools)),
            unknown: beyond(&pools.job_configuration, &ours.job_configuration),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty()
    }
}

fn beyond(left: &Map<String, Value>, right: &Map<String, Value>) -> Vec<String> {
    left.keys().filter(|name| !right.contains_key(*name)).cloned().collect()
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.missing.as_slice(), self.unknown.as_slice()) {
            ([], []) => f.write_str("no difference"),
            (missing, []) => write!(f, "it lacks {}", missing.join(", ")),
            ([], unknown) => write!(f, "it has {} besides", unknown.join(", ")),
            (missing, unknown) => {
                write!(f, "it lacks {} and has {} besides", missing.join(", "), unknown.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(variables: &[&str], configuration: &[&str]) -> BaseJobTemplate {
        let object = |names: &[&str]| names.iter().map(|&name| (name.to_owned(), json!({}))).collect();
        let properties: Map<String, Value> = object(variables);
        BaseJobTemplate {
            job_configuration: object(configuration),
            variables: Map::from_iter([("properties".to_owned(), Value::Object(properties))]),
        }
    }

    #[test]
    fn names_decide() {
        let ours = template(&["image", "gpus"], &["image", "gpus"]);
        assert!(Drift::between(&ours, &ours).is_empty());
        assert!(Drift::between(&ours, &BaseJobTemplate::default()).is_empty());
        let drift = Drift::between(&ours, &template(&["image", "site"], &["image", "shmsize"]));
        assert_eq!(drift.to_string(), "it lacks gpus and has shmsize besides");
    }
}
