//! `container_create_kwargs`: options under docker-py's names and in its value forms, as the engine's API
//! wants them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::LaunchError;
use super::super::fields::{flag, object, text, text_map, texts, wrong};
use super::{command, size};

/// Job variables of their own: here they are ignored, as the Python worker ignores them.
const JOB_VARIABLES: &[&str] = &[
    "auto_remove",
    "command",
    "container_create_kwargs",
    "env",
    "image",
    "image_pull_policy",
    "labels",
    "mem_limit",
    "memswap_limit",
    "name",
    "network_mode",
    "networks",
    "privileged",
    "registry_credentials",
    "stream_output",
    "volumes",
];

/// How a value is written.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Texts,
    /// A command line: text is split as a shell would.
    Command,
    Flag,
    Integer,
    Bytes,
    /// Texts by name; numbers become text.
    TextMap,
    /// `"/dev/a:/dev/b:rwm"` or the engine's own object.
    Devices,
    /// `{"name": …, "soft": …, "hard": …}`, first letters of either case.
    Capitalised(&'static [(&'static str, &'static str)]),
    /// The same, once instead of in a list.
    CapitalisedOne(&'static [(&'static str, &'static str)]),
    /// `{"/run": "size=1m"}` or `["/run:size=1m"]`.
    Tmpfs,
    /// `{"container": "alias"}`.
    Links,
    /// As the engine's API has it.
    Raw,
}

/// Where an option goes.
#[derive(Clone, Copy)]
enum Place {
    Container,
    Host,
}

use Form::{
    Bytes, Capitalised, CapitalisedOne, Command, Devices, Flag, Integer, Links, Raw, Text, TextMap, Texts,
    Tmpfs,
};
use Place::{Container, Host};

const ULIMIT: &[(&str, &str)] = &[("name", "Name"), ("soft", "Soft"), ("hard", "Hard")];
const DEVICE_REQUEST: &[(&str, &str)] = &[
    ("driver", "Driver"),
    ("count", "Count"),
    ("device_ids", "DeviceIDs"),
    ("capabilities", "Capabilities"),
    ("options", "Options"),
];
const LOG_CONFIG: &[(&str, &str)] = &[("type", "Type"), ("config", "Config")];
const HEALTH: &[(&str, &str)] = &[
    ("test", "Test"),
    ("interval", "Interval"),
    ("timeout", "Timeout"),
    ("retries", "Retries"),
    ("start_period", "StartPeriod"),
];

/// docker-py's name, where it goes, the engine's name, how it is written.
const OPTIONS: &[(&str, Place, &str, Form)] = &[
    ("blkio_weight", Host, "BlkioWeight", Integer),
    ("blkio_weight_device", Host, "BlkioWeightDevice", Raw),
    ("cap_add", Host, "CapAdd", Texts),
    ("cap_drop", Host, "CapDrop", Texts),
    ("cgroup_parent", Host, "CgroupParent", Text),
    ("cgroupns", Host, "CgroupnsMode", Text),
    ("cpu_count", Host, "CpuCount", Integer),
    ("cpu_percent", Host, "CpuPercent", Integer),
    ("cpu_period", Host, "CpuPeriod", Integer),
    ("cpu_quota", Host, "CpuQuota", Integer),
    ("cpu_rt_period", Host, "CpuRealtimePeriod", Integer),
    ("cpu_rt_runtime", Host, "CpuRealtimeRuntime", Integer),
    ("cpu_shares", Host, "CpuShares", Integer),
    ("cpuset_cpus", Host, "CpusetCpus", Text),
    ("cpuset_mems", Host, "CpusetMems", Text),
    ("device_cgroup_rules", Host, "DeviceCgroupRules", Texts),
    ("device_read_bps", Host, "BlkioDeviceReadBps", Raw),
    ("device_read_iops", Host, "BlkioDeviceReadIOps", Raw),
    ("device_requests", Host, "DeviceRequests", Capitalised(DEVICE_REQUEST)),
    ("device_write_bps", Host, "BlkioDeviceWriteBps", Raw),
    ("device_write_iops", Host, "BlkioDeviceWriteIOps", Raw),
    ("devices", Host, "Devices", Devices),
    ("dns", Host, "Dns", Texts),
    ("dns_opt", Host, "DnsOptions", Texts),
    ("dns_search", Host, "DnsSearch", Texts),
    ("domainname", Container, "Domainname", Text),
    ("entrypoint", Container, "Entrypoint", Command),
    ("group_add", Host, "GroupAdd", Texts),
    ("healthcheck", Container, "Healthcheck", CapitalisedOne(HEALTH)),
    ("hostname", Container, "Hostname", Text),
    ("init", Host, "Init", Flag),
    ("ipc_mode", Host, "IpcMode", Text),
    ("isolation", Host, "Isolation", Text),
    ("links", Host, "Links", Links),
    ("log_config", Host, "LogConfig", CapitalisedOne(LOG_CONFIG)),
    ("mem_reservation", Host, "MemoryReservation", Bytes),
    ("mem_swappiness", Host, "MemorySwappiness", Integer),
    ("mounts", Host, "Mounts", Raw),
    ("nano_cpus", Host, "NanoCpus", Integer),
    ("network_disabled", Container, "NetworkDisabled", Flag),
    ("oom_kill_disable", Host, "OomKillDisable", Flag),
    ("oom_score_adj", Host, "OomScoreAdj", Integer),
    ("pid_mode", Host, "PidMode", Text),
    ("pids_limit", Host, "PidsLimit", Integer),
    ("publish_all_ports", Host, "PublishAllPorts", Flag),
    ("read_only", Host, "ReadonlyRootfs", Flag),
    ("restart_policy", Host, "RestartPolicy", Raw),
    ("runtime", Host, "Runtime", Text),
    ("security_opt", Host, "SecurityOpt", Texts),
    ("shm_size", Host, "ShmSize", Bytes),
    ("stdin_open", Container, "OpenStdin", Flag),
    ("stop_signal", Container, "StopSignal", Text),
    ("storage_opt", Host, "StorageOpt", TextMap),
    ("sysctls", Host, "Sysctls", TextMap),
    ("tmpfs", Host, "Tmpfs", Tmpfs),
    ("tty", Container, "Tty", Flag),
    ("ulimits", Host, "Ulimits", Capitalised(ULIMIT)),
    ("user", Container, "User", Text),
    ("userns_mode", Host, "UsernsMode", Text),
    ("uts_mode", Host, "UTSMode", Text),
    ("volume_driver", Host, "VolumeDriver", Text),
    ("volumes_from", Host, "VolumesFrom", Texts),
    ("working_dir", Container, "WorkingDir", Text),
];

/// What `container_create_kwargs` asks for, in the engine's terms.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CreateOptions {
    /// Fields of the container.
    pub(super) container: Map<String, Value>,
    /// Fields of its `HostConfig`.
    pub(super) host: Map<String, Value>,
    /// Names and addresses for its hosts file.
    pub(super) extra_hosts: BTreeMap<String, String>,
    /// The platform, `os[/arch[/variant]]`.
    pub(super) platform: Option<String>,
}

impl CreateOptions {
    /// Translates docker-py's names and forms.
    ///
    /// # Errors
    /// An unknown name, or a value of a wrong form.
    pub(super) fn parse(kwargs: &Map<String, Value>) -> Result<Self, LaunchError> {
        let mut options = Self::default();
        for (name, value) in kwargs.iter().filter(|(_, value)| !value.is_null()) {
            let path = format!("container_create_kwargs.{name}");
            match name.as_str() {
                "extra_hosts" => options.extra_hosts = extra_hosts(&path, value.clone())?,
                "platform" => options.platform = Some(text(&path, value.clone())?),
                name if JOB_VARIABLES.contains(&name) => {
                    tracing::warn!("ignoring {path}: set the job variable {name:?} instead");
                }
                // docker-py's way to say what happens anyway.
                "detach" | "use_config_proxy" | "version" => {}
                name => {
                    let known = OPTIONS.iter().find(|(option, ..)| *option == name);
                    let Some((_, place, field, form)) = known else {
                        let message = format!("{path} is not an option that this worker knows");
                        return Err(LaunchError::Configuration { message });
                    };
                    let value = form.convert(&path, value.clone())?;
                    let target = match place {
                        Container => &mut options.container,
                        Host => &mut options.host,
                    };
                    target.insert((*field).to_owned(), value);
                }
            }
        }
        Ok(options)
    }
}

impl Form {
    fn convert(self, path: &str, value: Value) -> Result<Value, LaunchError> {
        Ok(match self {
            Text => json!(text(path, value)?),
            Texts => json!(one_or_more(path, value)?),
            Command => json!(command::words(path, value)?),
            Flag => json!(flag(path, &value)?),
            Integer => json!(integer(path, &value)?),
            Bytes => {
                let amount = text(path, value.clone())?;
                json!(size::parse(&amount).ok_or_else(|| wrong(
                    path,
                    "an amount of memory such as 64m",
                    &value
                ))?)
            }
            TextMap => json!(text_map(path, value)?),
            Devices => Value::Array(
                items(path, value)?.map(|(path, item)| device(&path, item)).collect::<Result<_, _>>()?,
            ),
            Capitalised(names) => Value::Array(
                items(path, value)?
                    .map(|(path, item)| capitalised(&path, item, names))
                    .collect::<Result<_, _>>()?,
            ),
            CapitalisedOne(names) => capitalised(path, value, names)?,
            Tmpfs => tmpfs(path, value)?,
            Links => match value {
                Value::Object(_) => {
                    let links = text_map(path, value)?;
                    json!(links.iter().map(|(name, alias)| format!("{name}:{alias}")).collect::<Vec<_>>())
                }
                value => json!(texts(path, value)?),
            },
            Raw => value,
        })
    }
}

fn items(path: &str, value: Value) -> Result<impl Iterator<Item = (String, Value)>, LaunchError> {
    let Value::Array(items) = value else { return Err(wrong(path, "a list", &value)) };
    let path = path.to_owned();
    Ok(items.into_iter().enumerate().map(move |(index, item)| (format!("{path}[{index}]"), item)))
}

fn one_or_more(path: &str, value: Value) -> Result<Vec<String>, LaunchError> {
    match value {
        Value::String(one) => Ok(vec![one]),
        value => texts(path, value),
    }
}

fn integer(path: &str, value: &Value) -> Result<i64, LaunchError> {
    let number = value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
    number.ok_or_else(|| wrong(path, "a whole number", value))
}

fn extra_hosts(path: &str, value: Value) -> Result<BTreeMap<String, String>, LaunchError> {
    if value.is_object() {
        return text_map(path, value);
    }
    let entries = texts(path, value)?.into_iter();
    entries
        .map(|entry| match entry.split_once(':') {
            Some((host, address)) => Ok((host.to_owned(), address.to_owned())),
            None => Err(wrong(path, "HOST:ADDRESS entries", &Value::String(entry))),
        })
        .collect()
}

fn device(path: &str, value: Value) -> Result<Value, LaunchError> {
    if value.is_object() {
        return Ok(value);
    }
    let mapping = text(path, value)?;
    let mut parts = mapping.split(':');
    let host = parts.next().unwrap_or_default();
    Ok(json!({
        "PathOnHost": host,
        "PathInContainer": parts.next().unwrap_or(host),
        "CgroupPermissions": parts.next().unwrap_or("rwm"),
    }))
}

fn capitalised(path: &str, value: Value, names: &[(&str, &str)]) -> Result<Value, LaunchError> {
    let mut result = Map::new();
    for (key, value) in object(path, value)? {
        let Some((_, field)) = names.iter().find(|(lower, upper)| *lower == key || *upper == key) else {
            let message = format!("{path}.{key} is not known there");
            return Err(LaunchError::Configuration { message });
        };
        result.insert((*field).to_owned(), value);
    }
    Ok(Value::Object(result))
}

fn tmpfs(path: &str, value: Value) -> Result<Value, LaunchError> {
    if value.is_object() {
        return Ok(json!(text_map(path, value)?));
    }
    let mounts: BTreeMap<String, String> = texts(path, value)?
        .into_iter()
        .map(|mount| match mount.split_once(':') {
            Some((target, options)) => (target.to_owned(), options.to_owned()),
            None => (mount, String::new()),
        })
        .collect();
    Ok(json!(mounts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn parse(value: Value) -> Result<CreateOptions, LaunchError> {
        CreateOptions::parse(value.as_object().unwrap())
    }

    #[test]
    fn docker_py_forms_become_the_engines() {
        let options = parse(json!({
            "extra_hosts": ["a:1.2.3.4"], "platform": "linux/amd64", "user": 1000, "entrypoint": "tini -- 'a b'",
            "hostname": "h", "working_dir": "/w", "shm_size": "64m", "cap_add": ["SYS_PTRACE"], "cap_drop": "ALL",
            "devices": ["/dev/fuse", "/dev/a:/dev/b:r"], "ulimits": [{"name": "nofile", "soft": 1, "hard": 2}],
            "tmpfs": ["/run:size=1m", "/tmp"], "read_only": true, "init": true, "dns": ["9.9.9.9"],
            "pids_limit": 100, "cpu_quota": "50000", "nano_cpus": 1_000_000_000, "sysctls": {"net.x": 1},
            "device_requests": [{"count": -1, "capabilities": [["gpu"]]}], "log_config": {"type": "none"},
            "security_opt": ["no-new-privileges"], "volumes": ["ignored"], "detach": true, "links": {"db": "d"},
        }))
        .unwrap();
        insta::assert_json_snapshot!(json!({"container": options.container, "host": options.host}), @r#"
        {
          "container": {
            "Entrypoint": [
              "tini",
              "--",
              "a b"
            ],
            "Hostname": "h",
            "User": "1000",
            "WorkingDir": "/w"
          },
          "host": {
            "CapAdd": [
              "SYS_PTRACE"
            ],
            "CapDrop": [
              "ALL"
            ],
            "CpuQuota": 50000,
            "DeviceRequests": [
              {
                "Capabilities": [
                  [
                    "gpu"
                  ]
                ],
                "Count": -1
              }
            ],
            "Devices": [
              {
                "CgroupPermissions": "rwm",
                "PathInContainer": "/dev/fuse",
                "PathOnHost": "/dev/fuse"
              },
              {
                "CgroupPermissions": "r",
                "PathInContainer": "/dev/b",
                "PathOnHost": "/dev/a"
              }
            ],
            "Dns": [
              "9.9.9.9"
            ],
            "Init": true,
            "Links": [
              "db:d"
            ],
            "LogConfig": {
              "Type": "none"
            },
            "NanoCpus": 1000000000,
            "PidsLimit": 100,
            "ReadonlyRootfs": true,
            "SecurityOpt": [
              "no-new-privileges"
            ],
            "ShmSize": 67108864,
            "Sysctls": {
              "net.x": "1"
            },
            "Tmpfs": {
              "/run": "size=1m",
              "/tmp": ""
            },
            "Ulimits": [
              {
                "Hard": 2,
                "Name": "nofile",
                "Soft": 1
              }
            ]
          }
        }
        "#);
        assert_eq!(options.extra_hosts, BTreeMap::from([("a".to_owned(), "1.2.3.4".to_owned())]));
        assert_eq!(options.platform.as_deref(), Some("linux/amd64"));
    }

    #[test]
    fn unknown_options_are_named() {
        for (kwargs, part) in [
            (json!({"shmsize": "64m"}), "container_create_kwargs.shmsize is not an option"),
            (json!({"environment": {}}), "container_create_kwargs.environment is not an option"),
            (json!({"ulimits": [{"nam": 1}]}), "container_create_kwargs.ulimits[0].nam is not known"),
            (json!({"cpu_quota": "much"}), "container_create_kwargs.cpu_quota must be a whole number"),
            (json!({"extra_hosts": ["nocolon"]}), "HOST:ADDRESS"),
        ] {
            let error = parse(kwargs).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
