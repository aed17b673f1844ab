//! What Docker users ask for, as job variables of their own: GPUs, limits, mounts, users, networks' details.
//!
//! They go beside `container_create_kwargs`, which stays for everything else. What both say is an error: which
//! of the two was meant, nobody can know.

mod devices;
mod limits;
mod mounts;
mod names;

use std::collections::BTreeMap;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::super::LaunchError;
use super::super::fields::{Fields, flag, object, text_map, wrong};
use super::command;

/// Job variables, each with the names in `container_create_kwargs` that say the same.
const RIVALS: &[(&str, &[&str])] = &[
    ("cap_add", &["cap_add"]),
    ("cap_drop", &["cap_drop"]),
    ("cpus", &["nano_cpus", "cpu_period", "cpu_quota"]),
    ("device_requests", &["device_requests"]),
    ("devices", &["devices"]),
    ("dns", &["dns"]),
    ("entrypoint", &["entrypoint"]),
    ("extra_hosts", &["extra_hosts"]),
    ("gpus", &["device_requests"]),
    ("group_add", &["group_add"]),
    ("hostname", &["hostname"]),
    ("init", &["init"]),
    ("ipc_mode", &["ipc_mode"]),
    ("log_driver", &["log_config"]),
    ("log_options", &["log_config"]),
    ("mounts", &["mounts"]),
    ("pids_limit", &["pids_limit"]),
    ("platform", &["platform"]),
    ("read_only", &["read_only"]),
    ("security_opt", &["security_opt"]),
    ("shm_size", &["shm_size"]),
    ("stop_signal", &["stop_signal"]),
    ("tmpfs", &["tmpfs"]),
    ("ulimits", &["ulimits"]),
    ("user", &["user"]),
    ("working_dir", &["working_dir"]),
];

/// The options of a job configuration, in the engine's terms.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    /// Fields of the container.
    pub(super) container: ContainerCreateBody,
    /// Fields of its `HostConfig`.
    pub(super) host: HostConfig,
    /// Names and addresses for its hosts file.
    pub(super) extra_hosts: BTreeMap<String, String>,
    /// The platform, `os[/arch[/variant]]`.
    pub(super) platform: Option<String>,
}

impl Options {
    /// Takes the options out of a job configuration. Empty text, lists and objects count as absent: forms
    /// send them for what nobody filled in.
    ///
    /// # Errors
    /// A value of a wrong form, or one that `container_create_kwargs` has too.
    pub(super) fn take(fields: &mut Fields, kwargs: &Map<String, Value>) -> Result<Self, LaunchError> {
        let mut given = Given { fields, kwargs };
        let mut device_requests = given.list("device_requests", devices::request)?;
        device_requests.extend(given.one("gpus", devices::gpus)?.flatten());
        let host = HostConfig {
            device_requests: filled(device_requests),
            devices: filled(given.list("devices", devices::mapping)?),
            nano_cpus: given.one("cpus", limits::nano_cpus)?,
            pids_limit: given.one("pids_limit", limits::pids)?.flatten(),
            shm_size: given.one("shm_size", limits::bytes)?,
            ulimits: filled(given.list("ulimits", limits::ulimit)?),
            mounts: filled(given.list("mounts", mounts::mount)?),
            tmpfs: given.one("tmpfs", mounts::tmpfs)?,
            readonly_rootfs: given.flag("read_only")?,
            cap_add: filled(given.list("cap_add", names::capability)?),
            cap_drop: filled(given.list("cap_drop", names::capability)?),
            security_opt: filled(given.list("security_opt", names::word)?),
            group_add: filled(given.list("group_add", names::word)?),
            dns: filled(given.list("dns", names::address)?),
            init: given.flag("init")?,
            ipc_mode: given.one("ipc_mode", names::word)?,
            log_config: given.log()?,
            ..HostConfig::default()
        };
        let container = ContainerCreateBody {
            user: given.one("user", names::word)?,
            entrypoint: given.one("entrypoint", command::words)?,
            working_dir: given.one("working_dir", names::absolute_path)?,
            hostname: given.one("hostname", names::hostname)?,
            stop_signal: given.one("stop_signal", names::signal)?,
            ..ContainerCreateBody::default()
        };
        Ok(Self {
            container,
            host,
            extra_hosts: given.one("extra_hosts", names::extra_hosts)?.unwrap_or_default(),
            platform: given.one("platform", names::word)?,
        })
    }
}

/// The job variables, and what `container_create_kwargs` says.
struct Given<'a> {
    fields: &'a mut Fields,
    kwargs: &'a Map<String, Value>,
}

impl Given<'_> {
    /// The value of a variable, unless it is empty.
    fn value(&mut self, name: &str) -> Result<Option<Value>, LaunchError> {
        let value = self.fields.take(name).filter(|value| match value {
            Value::String(text) => !text.trim().is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(entries) => !entries.is_empty(),
            _ => true,
        });
        if value.is_some() {
            let rivals = RIVALS.iter().find(|(variable, _)| *variable == name).map_or(&[][..], |(_, r)| r);
            let set = |rival: &&&str| self.kwargs.get(**rival).is_some_and(|value| !value.is_null());
            if let Some(rival) = rivals.iter().find(set) {
                let message = format!(
                    "{name} and container_create_kwargs.{rival} are both set and say the same thing; keep one"
                );
                return Err(LaunchError::Configuration { message });
            }
        }
        Ok(value)
    }

    fn one<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str, Value) -> Result<T, LaunchError>,
    ) -> Result<Option<T>, LaunchError> {
        self.value(name)?.map(|value| parse(name, value)).transpose()
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, LaunchError> {
        self.value(name)?.map(|value| flag(name, &value)).transpose()
    }

    /// A list; a text stands for a list of one.
    fn list<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str, Value) -> Result<T, LaunchError>,
    ) -> Result<Vec<T>, LaunchError> {
        match self.value(name)? {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let items = items.into_iter().enumerate();
                items.map(|(index, item)| parse(&format!("{name}[{index}]"), item)).collect()
            }
            Some(one @ (Value::String(_) | Value::Number(_))) => Ok(vec![parse(name, one)?]),
            Some(other) => Err(wrong(name, "a list", &other)),
        }
    }

    fn log(&mut self) -> Result<Option<HostConfigLogConfig>, LaunchError> {
        let driver = self.one("log_driver", names::word)?;
        let options = self.one("log_options", text_map)?;
        Ok((driver.is_some() || options.is_some()).then(|| HostConfigLogConfig {
            typ: driver,
            config: options.map(|options| options.into_iter().collect()),
        }))
    }
}

fn filled<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

/// The engine's own form of something, under its own names or those of docker-py (`soft` for `Soft`). What
/// does not fit is an error and never dropped.
fn engine_form<T>(path: &str, value: Value, known: &[(&str, &str)]) -> Result<T, LaunchError>
where
    T: Serialize + DeserializeOwned,
{
    let mut form = Map::new();
    for (key, value) in object(path, value)? {
        let Some((_, field)) = known.iter().find(|(ours, engines)| *ours == key || *engines == key) else {
            let names: Vec<&str> = known.iter().map(|(ours, _)| *ours).collect();
            let message = format!("{path}.{key} is not known there; known are {}", names.join(", "));
            return Err(LaunchError::Configuration { message });
        };
        if form.insert((*field).to_owned(), value).is_some() {
            let message = format!("{path}.{key} is there twice, in two spellings");
            return Err(LaunchError::Configuration { message });
        }
    }
    form.retain(|_, value| !value.is_null());
    let form = Value::Object(form);
    // Its own error would show the value.
    let read = T::deserialize(&form).ok();
    // What the type does not know it drops, also deep inside.
    read.filter(|read| json!(read) == form).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(ours, _)| *ours).collect();
        wrong(path, &format!("an object with {} as the engine wants them", names.join(", ")), &form)
    })
}

/// Names of the job variables that [`Options::take`] takes.
#[cfg(test)]
pub(super) fn variables() -> impl Iterator<Item = &'static str> {
    RIVALS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests;
