//! What counts of a container: all that somebody asked for, and nothing that differs from one container to the
//! next.

use prefect_api::id::FlowRunId;
use serde_json::{Map, Value, json};

/// Labels of our worker begin so.
const OUR_LABELS: &str = "io.ferryman.";

/// The document of a container, from the engine's answer to `inspect`.
pub(super) fn document(inspect: &Value, run: FlowRunId) -> Value {
    let at = |pointer: &str| inspect.pointer(pointer).cloned().unwrap_or_default();
    let mut config = at("/Config");
    if let Some(config) = config.as_object_mut() {
        config.insert("Env".to_owned(), assignments(config.get("Env")));
        if let Some(labels) = config.get_mut("Labels").and_then(Value::as_object_mut) {
            labels.retain(|name, _| !name.starts_with(OUR_LABELS));
        }
    }
    let mut document = json!({
        "Name": at("/Name"),
        "Path": at("/Path"),
        "Args": at("/Args"),
        "Image": at("/Image"),
        "Platform": at("/Platform"),
        "Config": config,
        "HostConfig": at("/HostConfig"),
        "Mounts": mounts(at("/Mounts")),
        "Networks": networks(&at("/NetworkSettings/Networks")),
    });
    let id = inspect.get("Id").and_then(Value::as_str).unwrap_or_default();
    let run = run.to_string();
    let short = id.get(..12).unwrap_or(id);
    tidy(&mut document, &|text| {
        let text = text.replace(id, "<id>").replace(short, "<id>").replace(&run, "<run>");
        if generated_name(&text) { "/<generated>".to_owned() } else { text }
    });
    document
}

/// `["A=1"]` as an object: the order of variables means nothing.
fn assignments(env: Option<&Value>) -> Value {
    let items = env.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let pairs = items.map(|item| item.split_once('=').unwrap_or((item, "")));
    pairs.map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Map<_, _>>().into()
}

/// Mounts by the path in the container. Names of anonymous volumes are the engine's.
fn mounts(mounts: Value) -> Value {
    let Value::Array(mounts) = mounts else { return Value::Null };
    let keyed = mounts.into_iter().filter_map(|mut mount| {
        let target = mount.get("Destination")?.as_str()?.to_owned();
        let name = mount.get("Name").and_then(Value::as_str).unwrap_or_default();
        if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mount = mount.as_object_mut()?;
            mount.insert("Name".to_owned(), "<anonymous>".into());
            mount.remove("Source");
        }
        Some((target, mount))
    });
    keyed.collect::<Map<_, _>>().into()
}

/// What was asked for in each network; addresses are the engine's choice.
fn networks(networks: &Value) -> Value {
    let asked = |network: &Value| {
        ["IPAMConfig", "Links", "Aliases", "DriverOpts"]
            .map(|key| (key.to_owned(), network.get(key).cloned().unwrap_or_default()))
            .into_iter()
            .collect::<Map<_, _>>()
    };
    let networks = networks.as_object().into_iter().flatten();
    // The name itself is a fact, hence never dropped as empty.
    networks
        .map(|(name, network)| {
            (name.clone(), json!({"connected": true, "settings": Value::Object(asked(network))}))
        })
        .collect::<Map<_, _>>()
        .into()
}

/// Whether the engine invented this name: `/agitated_hopper4`.
fn generated_name(text: &str) -> bool {
    let Some((left, right)) = text.strip_prefix('/').and_then(|name| name.split_once('_')) else {
        return false;
    };
    let word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    word(left) && word(right.trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// Renames what differs by construction, and drops what is empty: null, `[]` and `{}` ask for the same.
fn tidy(value: &mut Value, rename: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = rename(text),
        Value::Array(items) => items.iter_mut().for_each(|item| tidy(item, rename)),
        Value::Object(object) => {
            object.values_mut().for_each(|value| tidy(value, rename));
            object.retain(|_, value| !is_empty(value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_keeps_what_was_asked_for() {
        let id = "ab".repeat(32);
        let run = FlowRunId::generate();
        let inspect = json!({
            "Id": id, "Created": "now", "Name": "/agitated_hopper4",
            "Config": {"Hostname": id.get(..12), "Env": ["B=2=3", format!("PREFECT__FLOW_RUN_ID={run}")],
                "Labels": {"io.ferryman.worker": "w", "team": "x"}, "Volumes": {}},
            "HostConfig": {"Binds": null, "Memory": 0, "Dns": []},
            "Mounts": [{"Destination": "/data", "Name": "cd".repeat(32), "Source": "/var/lib"}],
            "NetworkSettings": {"Networks": {"host": {"IPAddress": "1.2.3.4", "Aliases": [id.get(..12)]}}},
        });
        let expected = json!({
            "Name": "/<generated>",
            "Config": {"Hostname": "<id>", "Env": {"B": "2=3", "PREFECT__FLOW_RUN_ID": "<run>"}, "Labels": {"team": "x"}},
            "HostConfig": {"Memory": 0},
            "Mounts": {"/data": {"Destination": "/data", "Name": "<anonymous>"}},
            "Networks": {"host": {"connected": true, "settings": {"Aliases": ["<id>"]}}},
        });
        assert_eq!(document(&inspect, run), expected);
    }
}
