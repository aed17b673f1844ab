//! `container_create_kwargs`: options under docker-py's names and in its value forms, as the engine's API
//! wants them.
//!
//! Forms are as strict as docker-py and the engine together; what they drop silently is an error here.

mod form;
mod object;
mod ports;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::LaunchError;
use super::super::fields::{exact_text, exact_texts, flag, object as object_of, wrong};
use form::Form::{
    Bytes, Choice, Command, Devices, Flag, Groups, Integer, Links, Object, Objects, Small, Text, TextMap,
    TextOrTexts, Texts, Tmpfs, User, VolumesFrom,
};
use form::{Form, text_of_scalar};
use ports::Ports;

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

/// Names of docker-py that no engine of today understands, and what to do instead.
const GONE: &[(&str, &str)] = &[
    ("init_path", "use init, which takes the engine's own init"),
    ("kernel_memory", "use mem_limit, which covers the kernel's memory too"),
    ("lxc_conf", "remove it"),
    ("mac_address", "set MacAddress of a network in networking_config, which engines from version 25 obey"),
];

/// Where an option goes.
#[derive(Clone, Copy)]
enum Place {
    Container,
    Host,
}

use Place::{Container, Host};

/// docker-py's name, where it goes, the engine's name, how it is written.
const OPTIONS: &[(&str, Place, &str, Form)] = &[
    ("blkio_weight", Host, "BlkioWeight", Small),
    ("blkio_weight_device", Host, "BlkioWeightDevice", Objects(object::WEIGHT_DEVICE)),
    ("cap_add", Host, "CapAdd", TextOrTexts),
    ("cap_drop", Host, "CapDrop", TextOrTexts),
    ("cgroup_parent", Host, "CgroupParent", Text),
    ("cgroupns", Host, "CgroupnsMode", Choice(&["private", "host"])),
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
    ("device_read_bps", Host, "BlkioDeviceReadBps", Objects(object::RATE_DEVICE)),
    ("device_read_iops", Host, "BlkioDeviceReadIOps", Objects(object::RATE_DEVICE)),
    ("device_requests", Host, "DeviceRequests", Objects(object::DEVICE_REQUEST)),
    ("device_write_bps", Host, "BlkioDeviceWriteBps", Objects(object::RATE_DEVICE)),
    ("device_write_iops", Host, "BlkioDeviceWriteIOps", Objects(object::RATE_DEVICE)),
    ("devices", Host, "Devices", Devices),
    ("dns", Host, "Dns", Texts),
    ("dns_opt", Host, "DnsOptions", Texts),
    ("dns_search", Host, "DnsSearch", Texts),
    ("domainname", Container, "Domainname", Text),
    ("entrypoint", Container, "Entrypoint", Command),
    ("group_add", Host, "GroupAdd", Groups),
    ("healthcheck", Container, "Healthcheck", Object(object::HEALTH)),
    ("hostname", Container, "Hostname", Text),
    ("init", Host, "Init", Flag),
    ("ipc_mode", Host, "IpcMode", Text),
    ("isolation", Host, "Isolation", Choice(&["default", "process", "hyperv"])),
    ("links", Host, "Links", Links),
    ("log_config", Host, "LogConfig", Object(object::LOG_CONFIG)),
    ("mem_reservation", Host, "MemoryReservation", Bytes),
    ("mem_swappiness", Host, "MemorySwappiness", Integer),
    ("mounts", Host, "Mounts", Objects(object::MOUNT)),
    ("nano_cpus", Host, "NanoCpus", Integer),
    ("network_disabled", Container, "NetworkDisabled", Flag),
    ("oom_kill_disable", Host, "OomKillDisable", Flag),
    ("oom_score_adj", Host, "OomScoreAdj", Integer),
    ("pid_mode", Host, "PidMode", Text),
    ("pids_limit", Host, "PidsLimit", Integer),
    ("publish_all_ports", Host, "PublishAllPorts", Flag),
    ("read_only", Host, "ReadonlyRootfs", Flag),
    ("restart_policy", Host, "RestartPolicy", Object(object::RESTART_POLICY)),
    ("runtime", Host, "Runtime", Text),
    ("security_opt", Host, "SecurityOpt", Texts),
    ("shm_size", Host, "ShmSize", Bytes),
    ("stdin_open", Container, "OpenStdin", Flag),
    ("stop_signal", Container, "StopSignal", Text),
    ("storage_opt", Host, "StorageOpt", TextMap),
    ("sysctls", Host, "Sysctls", Form::Sysctls),
    ("tmpfs", Host, "Tmpfs", Tmpfs),
    ("tty", Container, "Tty", Flag),
    ("ulimits", Host, "Ulimits", Objects(object::ULIMIT)),
    ("user", Container, "User", User),
    ("userns_mode", Host, "UsernsMode", Choice(&["host"])),
    ("uts_mode", Host, "UTSMode", Choice(&["host"])),
    ("volume_driver", Host, "VolumeDriver", Text),
    ("volumes_from", Host, "VolumesFrom", VolumesFrom),
    ("working_dir", Container, "WorkingDir", Text),
];

/// Entries for a container's hosts file.
#[derive(Debug, PartialEq)]
pub(super) enum ExtraHosts {
    /// Addresses by name.
    Named(BTreeMap<String, String>),
    /// `NAME:ADDRESS`, in the order given.
    Listed(Vec<String>),
}

/// What `container_create_kwargs` asks for, in the engine's terms.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CreateOptions {
    /// Fields of the container.
    pub(super) container: Map<String, Value>,
    /// Fields of its `HostConfig`.
    pub(super) host: Map<String, Value>,
    /// Names and addresses for its hosts file.
    pub(super) extra_hosts: Option<ExtraHosts>,
    /// Settings of the container in networks, by the network's name.
    pub(super) endpoints: BTreeMap<String, Value>,
    /// The platform, `os[/arch[/variant]]`.
    pub(super) platform: Option<String>,
    /// Standard streams are not to be attached.
    pub(super) detach: bool,
}

impl CreateOptions {
    /// Translates docker-py's names and forms.
    ///
    /// # Errors
    /// An unknown name, or a value of a wrong form.
    pub(super) fn parse(kwargs: &Map<String, Value>) -> Result<Self, LaunchError> {
        let mut options = Self::default();
        for (name, value) in kwargs {
            options.add(name, value)?;
        }
        Ok(options)
    }

    fn add(&mut self, name: &str, value: &Value) -> Result<(), LaunchError> {
        let path = format!("container_create_kwargs.{name}");
        let unknown =
            |reason: String| Err(LaunchError::Configuration { message: format!("{path} {reason}") });
        let option = OPTIONS.iter().find(|(option, ..)| *option == name);
        match name {
            _ if JOB_VARIABLES.contains(&name) => {
                tracing::warn!("ignoring {path}: set the job variable {name:?} instead");
            }
            "environment" | "network" => {
                let variable = if name == "network" { "networks" } else { "env" };
                return unknown(format!("is not possible: set the job variable {variable:?} instead"));
            }
            // What docker-py asks of its own client.
            "version" => {}
            "detach" | "extra_hosts" | "networking_config" | "platform" | "ports" | "use_config_proxy" => {
                if !value.is_null() {
                    self.add_special(name, &path, value)?;
                }
            }
            _ => {
                if let Some((_, instead)) = GONE.iter().find(|(gone, _)| *gone == name) {
                    return unknown(format!("is nothing that engines understand: {instead}"));
                }
                let Some((_, place, field, form)) = option else {
                    return unknown("is not an option that this worker knows".to_owned());
                };
                // docker-py leaves out what is null.
                if !value.is_null() {
                    let value = form.convert(&path, value)?;
                    let target = match place {
                        Container => &mut self.container,
                        Host => &mut self.host,
                    };
                    target.insert((*field).to_owned(), value);
                }
            }
        }
        Ok(())
    }

    /// The options that are more than one field.
    fn add_special(&mut self, name: &str, path: &str, value: &Value) -> Result<(), LaunchError> {
        match name {
            "detach" => self.detach = flag(path, value)?,
            "extra_hosts" => self.extra_hosts = Some(extra_hosts(path, value)?),
            "networking_config" => {
                for (network, settings) in object_of(path, value.clone())? {
                    let path = format!("{path}.{network}");
                    self.endpoints.insert(network, object::convert(&path, &settings, object::ENDPOINT)?);
                }
            }
            "platform" => self.platform = Some(exact_text(path, value)?),
            "ports" => {
                let Ports { exposed, bindings } = ports::parse(path, value)?;
                if !bindings.is_empty() {
                    self.container.insert("ExposedPorts".to_owned(), Value::Object(exposed));
                    self.host.insert("PortBindings".to_owned(), Value::Object(bindings));
                }
            }
            _ => {
                if flag(path, value)? {
                    tracing::warn!("ignoring {path}: set the variables of the proxy in env instead");
                }
            }
        }
        Ok(())
    }
}

fn extra_hosts(path: &str, value: &Value) -> Result<ExtraHosts, LaunchError> {
    match value {
        Value::Object(hosts) => {
            let entries = hosts.iter().map(|(name, address)| {
                Ok((name.clone(), text_of_scalar(&format!("{path}.{name}"), address)?))
            });
            Ok(ExtraHosts::Named(entries.collect::<Result<_, LaunchError>>()?))
        }
        value => {
            let entries = exact_texts(path, value)?;
            match entries.iter().find(|entry| !entry.contains(':')) {
                None => Ok(ExtraHosts::Listed(entries)),
                Some(_) => {
                    Err(wrong(path, "a list of HOST:ADDRESS, or an object of hosts and addresses", value))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
