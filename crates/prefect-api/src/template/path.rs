//! Paths into JSON: `a.b[0].c` and `a.b.0.c` are the same.

use serde_json::{Map, Value};

fn keys(path: &str) -> Vec<String> {
    path.replace('[', ".").replace(']', "").split('.').map(str::to_owned).collect()
}

/// The value at `path`, if every step of it exists.
pub(super) fn get<'a>(root: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let keys = keys(path);
    let (first, rest) = keys.split_first()?;
    rest.iter().try_fold(root.get(first)?, |value, key| match value {
        Value::Object(object) => object.get(key),
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Puts `value` at `path`, making objects on the way. `Err` if the path leads through something else.
pub(super) fn set(root: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), ()> {
    let mut keys = keys(path);
    let last = keys.pop().ok_or(())?;
    let mut object = root;
    for key in keys {
        object = object.entry(key).or_insert_with(|| Value::Object(Map::new())).as_object_mut().ok_or(())?;
    }
    object.insert(last, value);
    Ok(())
}

/// Lays `over` on `base`: objects merge key by key, anything else is replaced.
pub(super) fn deep_merge(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(inner)), Value::Object(value)) => deep_merge(inner, value),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
