//! Where two documents differ.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// One place where two documents differ: the one that counts as right, and ours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The case.
    pub case: String,
    /// The place, as `HostConfig.Memory`.
    pub path: String,
    /// What the other has there; null if nothing.
    pub reference: Value,
    /// What ours has there; null if nothing.
    pub ours: Value,
}

/// All places where two documents of a case differ. Lists are compared as wholes.
pub fn differences(case: &str, reference: &Value, ours: &Value) -> Vec<Difference> {
    let mut comparison = Comparison { case, lists: Lists::Whole, found: Vec::new() };
    comparison.collect("", reference, ours);
    comparison.found
}

/// The same, but of lists each item that only one of them has is a difference of its own.
pub fn differences_by_item(case: &str, reference: &Value, ours: &Value) -> Vec<Difference> {
    let mut comparison = Comparison { case, lists: Lists::ByItem, found: Vec::new() };
    comparison.collect("", reference, ours);
    comparison.found
}

/// How lists are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lists {
    Whole,
    ByItem,
}

struct Comparison<'a> {
    case: &'a str,
    lists: Lists,
    found: Vec<Difference>,
}

impl Comparison<'_> {
    fn collect(&mut self, path: &str, reference: &Value, ours: &Value) {
        match (reference, ours) {
            (Value::Object(left), Value::Object(right)) => {
                let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
                for key in keys {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    let side = |object: &serde_json::Map<String, Value>| object.get(key).cloned();
                    self.collect(&path, &side(left).unwrap_or_default(), &side(right).unwrap_or_default());
                }
            }
            (reference, ours) if reference == ours => {}
            (Value::Array(left), Value::Array(right)) if self.lists == Lists::ByItem => {
                let common = common_items(left, right);
                let (mut next_left, mut next_right) = (0, 0);
                for (stop_left, stop_right) in common.into_iter().chain([(left.len(), right.len())]) {
                    for item in left.get(next_left..stop_left).unwrap_or_default() {
                        self.note(path, item, &Value::Null);
                    }
                    for item in right.get(next_right..stop_right).unwrap_or_default() {
                        self.note(path, &Value::Null, item);
                    }
                    (next_left, next_right) = (stop_left + 1, stop_right + 1);
                }
            }
            (reference, ours) => self.note(path, reference, ours),
        }
    }

    fn note(&mut self, path: &str, reference: &Value, ours: &Value) {
        self.found.push(Difference {
            case: self.case.to_owned(),
            path: path.to_owned(),
            reference: reference.clone(),
            ours: ours.clone(),
        });
    }
}

/// The longest sequence of items that both lists have, by their indices.
fn common_items(left: &[Value], right: &[Value]) -> Vec<(usize, usize)> {
    // Row by row from the end: how much the rest of both has in common.
    let width = right.len() + 1;
    let mut lengths = vec![0_usize; (left.len() + 1) * width];
    let at = |lengths: &[usize], i: usize, j: usize| lengths.get(i * width + j).copied().unwrap_or_default();
    for (i, a) in left.iter().enumerate().rev() {
        for (j, b) in right.iter().enumerate().rev() {
            let length = if a == b {
                at(&lengths, i + 1, j + 1) + 1
            } else {
                at(&lengths, i + 1, j).max(at(&lengths, i, j + 1))
            };
            if let Some(cell) = lengths.get_mut(i * width + j) {
                *cell = length;
            }
        }
    }
    let (mut i, mut j, mut common) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        if a == b {
            common.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if at(&lengths, i + 1, j) >= at(&lengths, i, j + 1) {
            i += 1;
        } else {
            j += 1;
        }
    }
    common
}

/// The values of a document that are no containers of others.
pub fn leaves(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(leaves).sum(),
        Value::Object(object) => object.values().map(leaves).sum(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_told_by_path_and_absent_is_null() {
        let reference = json!({"a": {"same": 1, "b": 2, "gone": [1]}, "list": [1, 2]});
        let ours = json!({"a": {"same": 1, "b": 3}, "list": [1, 2], "new": true});
        let found = differences("c", &reference, &ours);
        let told: Vec<_> =
            found.iter().map(|found| (found.path.as_str(), &found.reference, &found.ours)).collect();
        assert_eq!(
            told,
            [
                ("a.b", &json!(2), &json!(3)),
                ("a.gone", &json!([1]), &json!(null)),
                ("new", &json!(null), &json!(true))
            ]
        );
    }

    #[test]
    fn items_that_only_one_list_has_are_told_each() {
        let reference = json!({"lines": ["a", "b", "c", "d"]});
        let ours = json!({"lines": ["a", "x", "c", "d", "e"]});
        let told: Vec<_> = differences_by_item("c", &reference, &ours)
            .into_iter()
            .map(|found| (found.path, found.reference, found.ours))
            .collect();
        let path = || "lines".to_owned();
        assert_eq!(
            told,
            [
                (path(), json!("b"), json!(null)),
                (path(), json!(null), json!("x")),
                (path(), json!(null), json!("e"))
            ]
        );
        let moved = differences_by_item("c", &json!(["a", "b"]), &json!(["b", "a"]));
        assert_eq!(moved.len(), 2, "the order counts");
    }
}
