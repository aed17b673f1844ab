//! `ports`: `{"80/tcp": 8080}`, in all the forms of docker-py that JSON has.

use serde_json::{Map, Value, json};

use super::super::super::LaunchError;
use super::super::super::fields::wrong;
use super::form::text_of_scalar;

/// Ports of the container as the engine wants them.
pub(super) struct Ports {
    /// `{"80/tcp": {}}`.
    pub(super) exposed: Map<String, Value>,
    /// What each is bound to on the host.
    pub(super) bindings: Map<String, Value>,
}

/// Reads the option.
pub(super) fn parse(path: &str, value: &Value) -> Result<Ports, LaunchError> {
    let ports = value.as_object().ok_or_else(|| {
        wrong(path, "an object of the container's ports and the host's, such as {\"80/tcp\": 8080}", value)
    })?;
    let (mut exposed, mut bindings) = (Map::new(), Map::new());
    for (port, bound) in ports {
        let path = format!("{path}.{port}");
        let port = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        let bound = match bound {
            Value::Array(bound) => {
                bound.iter().map(|bound| binding(&path, bound)).collect::<Result<_, _>>()?
            }
            bound => vec![binding(&path, bound)?],
        };
        exposed.insert(port.clone(), json!({}));
        bindings.insert(port, Value::Array(bound));
    }
    Ok(Ports { exposed, bindings })
}

fn binding(path: &str, value: &Value) -> Result<Value, LaunchError> {
    let port = |value: &Value| match value {
        Value::Null => Ok(String::new()),
        value => text_of_scalar(path, value),
    };
    let Some(binding) = value.as_object() else { return Ok(json!({"HostIp": "", "HostPort": port(value)?})) };
    let known = |key: &String| key == "HostIp" || key == "HostPort";
    match binding.get("HostPort").filter(|_| binding.keys().all(known)) {
        None => Err(wrong(path, "a port, null, or an object of HostPort and HostIp", value)),
        Some(host_port) => {
            let address = binding.get("HostIp").map_or(Ok(String::new()), port)?;
            Ok(json!({"HostIp": address, "HostPort": port(host_port)?}))
        }
    }
}
