//! Where two documents differ.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// One place where the two workers differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The case.
    pub case: String,
    /// The place, as `HostConfig.Memory`.
    pub path: String,
    /// What Python's worker has there; null if nothing.
    pub python: Value,
    /// What ours has there.
    pub ours: Value,
}

/// All places where two documents of a case differ. Lists are compared as wholes.
pub fn differences(case: &str, python: &Value, ours: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    collect(case, "", python, ours, &mut found);
    found
}

fn collect(case: &str, path: &str, python: &Value, ours: &Value, found: &mut Vec<Difference>) {
    match (python, ours) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let side = |object: &serde_json::Map<String, Value>| object.get(key).cloned();
                collect(
                    case,
                    &path,
                    &side(left).unwrap_or_default(),
                    &side(right).unwrap_or_default(),
                    found,
                );
            }
        }
        (python, ours) if python == ours => {}
        (python, ours) => found.push(Difference {
            case: case.to_owned(),
            path: path.to_owned(),
            python: python.clone(),
            ours: ours.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_told_by_path_and_absent_is_null() {
        let python = json!({"a": {"same": 1, "b": 2, "gone": [1]}, "list": [1, 2]});
        let ours = json!({"a": {"same": 1, "b": 3}, "list": [1, 2], "new": true});
        let found = differences("c", &python, &ours);
        let told: Vec<_> =
            found.iter().map(|found| (found.path.as_str(), &found.python, &found.ours)).collect();
        assert_eq!(
            told,
            [
                ("a.b", &json!(2), &json!(3)),
                ("a.gone", &json!([1]), &json!(null)),
                ("new", &json!(null), &json!(true))
            ]
        );
    }
}
