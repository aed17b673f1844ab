//! The rules, applied to the body of a container.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::binds;
use super::file::{Limits, Sections, Security};
use super::{NANO, Request, glob, mounts};
use crate::launcher::LaunchError;

/// Fields of a container that concern nothing outside of it.
const INNER: [&str; 21] = [
    "ArgsEscaped",
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Cmd",
    "Domainname",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Hostname",
    "Labels",
    "NetworkDisabled",
    "OnBuild",
    "OpenStdin",
    "Shell",
    "StdinOnce",
    "StopSignal",
    "StopTimeout",
    "Tty",
    "WorkingDir",
];

/// Fields of a `HostConfig` that take nothing from the host, or only lessen what there is.
const HARMLESS: [&str; 17] = [
    "AutoRemove",
    "BlkioWeight",
    "CapDrop",
    "ConsoleSize",
    "CpuShares",
    "CpusetCpus",
    "CpusetMems",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "Init",
    "MemoryReservation",
    "MemorySwappiness",
    "ShmSize",
    "Tmpfs",
    "Ulimits",
];

/// Fields whose empty value takes protection away.
const EMPTY_IS_DANGEROUS: [&str; 2] = ["MaskedPaths", "ReadonlyPaths"];

pub(super) fn forbidden(rule: &str, message: impl Into<String>) -> LaunchError {
    LaunchError::Forbidden { rule: rule.to_owned(), message: message.into() }
}

/// Fails unless `allowed`.
pub(super) fn require(
    allowed: bool,
    rule: &str,
    message: impl FnOnce() -> String,
) -> Result<(), LaunchError> {
    if allowed { Ok(()) } else { Err(forbidden(rule, message())) }
}

pub(super) fn judge(
    rules: &Sections,
    engine: Option<&Path>,
    request: Request<'_>,
) -> Result<(), LaunchError> {
    let Value::Object(mut body) = json!(request.body) else {
        return Err(forbidden("host_config.allow", "the container has no readable body"));
    };
    let host = match body.remove("HostConfig") {
        Some(Value::Object(host)) => host,
        _ => Map::new(),
    };
    image(rules, &body, request)?;
    user(&rules.security, &body, request)?;
    networks(rules, &body, &host, request.further_networks)?;
    limits(&rules.limits, &host)?;
    required(&rules.security, &host)?;
    for (field, value) in &body {
        let judged = matches!(field.as_str(), "Image" | "User" | "Volumes" | "NetworkingConfig");
        let inner = INNER.contains(&field.as_str());
        require(judged || inner || is_empty(value), "host_config.allow", || unjudged(field))?;
    }
    for (field, value) in &host {
        if EMPTY_IS_DANGEROUS.contains(&field.as_str()) || !is_empty(value) {
            host_field(rules, engine, field, value)?;
        }
    }
    Ok(())
}

fn image(rules: &Sections, body: &Map<String, Value>, request: Request<'_>) -> Result<(), LaunchError> {
    let image = text(body.get("Image"));
    let allowed = rules.images.allow.iter().any(|pattern| pattern.0.matches(image));
    require(allowed, "images.allow", || format!("the image {image:?} is not in its list"))?;
    let policies = rules.images.pull_policies.as_ref();
    let allowed =
        policies.is_none_or(|policies| policies.iter().any(|policy| policy.0 == request.pull_policy));
    require(allowed, "images.pull_policies", || format!("{:?} is not in its list", request.pull_policy))
}

fn user(security: &Security, body: &Map<String, Value>, request: Request<'_>) -> Result<(), LaunchError> {
    let own = text(body.get("User"));
    let user = if own.is_empty() {
        // Before the image is there, nobody knows; afterwards it is asked again.
        let Some(user) = request.image_user else { return Ok(()) };
        user
    } else {
        own
    };
    if !security.root {
        let id = user.split(':').next().unwrap_or_default();
        require(id.parse::<u32>().is_ok_and(|id| id > 0), "security.root", || {
            let shown = if user.is_empty() { "root" } else { user };
            format!("the user {shown:?} is or may be root; set user to a number above 0")
        })?;
    }
    let allowed = security.users.as_ref().is_none_or(|users| glob::any(users, user));
    require(allowed, "security.users", || format!("the user {user:?} is not in its list"))
}

fn networks(
    rules: &Sections,
    body: &Map<String, Value>,
    host: &Map<String, Value>,
    further: &[String],
) -> Result<(), LaunchError> {
    let mode = match text(host.get("NetworkMode")) {
        "" | "default" => "bridge",
        mode => mode,
    };
    let endpoints = body.get("NetworkingConfig").and_then(|config| config.get("EndpointsConfig"));
    let endpoints = endpoints.and_then(Value::as_object);
    for settings in endpoints.into_iter().flat_map(Map::values) {
        for (field, value) in settings.as_object().into_iter().flatten() {
            let known = matches!(field.as_str(), "Aliases" | "IPAMConfig");
            require(known || is_empty(value), "host_config.allow", || unjudged(field))?;
        }
    }
    let attached = endpoints.into_iter().flat_map(Map::keys).map(String::as_str);
    for network in std::iter::once(mode).chain(attached).chain(further.iter().map(String::as_str)) {
        let is_mode = matches!(network, "bridge" | "default" | "host" | "none") || network.contains(':');
        let (list, rule) = if is_mode {
            (&rules.network.modes, "network.modes")
        } else {
            (&rules.network.networks, "network.networks")
        };
        let name = if network == "default" { "bridge" } else { network };
        require(glob::any(list, name), rule, || format!("{network:?} is not in its list"))?;
    }
    Ok(())
}

fn limits(limits: &Limits, host: &Map<String, Value>) -> Result<(), LaunchError> {
    let number = |field: &str| host.get(field).and_then(Value::as_i64).unwrap_or(0);
    let memory = number("Memory");
    if let Some(most) = limits.memory {
        require(memory > 0 && memory <= most.0, "limits.memory", || match memory {
            1.. => format!("{memory} bytes are more than {}", most.0),
            _ => format!("a container must have a limit of at most {} bytes; set mem_limit", most.0),
        })?;
    }
    if let Some(most) =
        limits.memory_swap.map(|most| most.0).or(limits.memory.map(|most| most.0.saturating_mul(2)))
    {
        // Nothing said: the engine gives as much swap as memory.
        let swap = if number("MemorySwap") == 0 { memory.saturating_mul(2) } else { number("MemorySwap") };
        require(swap > 0 && swap <= most, "limits.memory_swap", || {
            format!("memory and swap together must be at most {most} bytes; set memswap_limit")
        })?;
    }
    if let Some(most) = limits.cpus {
        let period = if number("CpuPeriod") > 0 { number("CpuPeriod") } else { 100_000 };
        #[expect(clippy::cast_precision_loss, reason = "compared with a number of processors")]
        let cpus = match (number("NanoCpus"), number("CpuQuota")) {
            (nanos @ 1.., _) => nanos as f64 / NANO,
            (_, quota @ 1..) => quota as f64 / period as f64,
            _ => f64::INFINITY,
        };
        require(cpus <= most, "limits.cpus", || {
            format!("a container must have at most {most} processors; set cpus")
        })?;
    }
    if let Some(most) = limits.pids {
        let pids = number("PidsLimit");
        require(pids > 0 && pids <= most, "limits.pids", || {
            format!("a container must have at most {most} processes; set pids_limit")
        })?;
    }
    Ok(())
}

fn required(security: &Security, host: &Map<String, Value>) -> Result<(), LaunchError> {
    if security.require_read_only {
        let read_only = host.get("ReadonlyRootfs") == Some(&json!(true));
        require(read_only, "security.require_read_only", || {
            "the root file system must be read-only; set read_only".to_owned()
        })?;
    }
    if security.require_no_new_privileges {
        let options = texts(host.get("SecurityOpt"));
        require(
            options.iter().any(|option| no_new_privileges(option)),
            "security.require_no_new_privileges",
            || "set no-new-privileges in security_opt".to_owned(),
        )?;
    }
    Ok(())
}

fn host_field(
    rules: &Sections,
    engine: Option<&Path>,
    field: &str,
    value: &Value,
) -> Result<(), LaunchError> {
    let security = &rules.security;
    match field {
        // Judged as a whole above.
        "NetworkMode" | "Memory" | "MemorySwap" | "NanoCpus" | "CpuQuota" | "CpuPeriod" | "PidsLimit"
        | "ReadonlyRootfs" => Ok(()),
        "Privileged" => {
            require(security.privileged, "security.privileged", || "privileged is set".to_owned())
        }
        "CapAdd" => each(value, |capability| {
            let allowed =
                security.cap_add.iter().any(|known| bare_capability(known) == bare_capability(capability));
            require(allowed, "security.cap_add", || not_in_list(capability))
        }),
        "SecurityOpt" => each(value, |option| {
            let allowed =
                no_new_privileges(option) || security.security_opt.iter().any(|known| known == option);
            require(allowed, "security.security_opt", || not_in_list(option))
        }),
        "Sysctls" => value.as_object().into_iter().flat_map(Map::keys).try_for_each(|name| {
            require(glob::any(&security.sysctls, name), "security.sysctls", || not_in_list(name))
        }),
        "GroupAdd" => each(value, |group| {
            require(glob::any(&security.groups, group), "security.groups", || not_in_list(group))
        }),
        "PidMode" => mode(value, &["private"], &security.pid_modes, "security.pid_modes"),
        "IpcMode" => {
            mode(value, &["private", "none", "shareable"], &security.ipc_modes, "security.ipc_modes")
        }
        "UTSMode" => mode(value, &[], &security.uts_modes, "security.uts_modes"),
        "UsernsMode" => mode(value, &[], &security.userns_modes, "security.userns_modes"),
        "CgroupnsMode" => mode(value, &["private"], &security.cgroupns_modes, "security.cgroupns_modes"),
        "LogConfig" => mode(&value["Type"], &[], &rules.logging.drivers, "logging.drivers"),
        "PortBindings" | "PublishAllPorts" => {
            require(rules.network.publish_ports, "network.publish_ports", || "ports are published".to_owned())
        }
        "Devices" => value.as_array().into_iter().flatten().try_for_each(|device| {
            let path = text(device.get("PathOnHost"));
            let allowed = binds::plain(path).is_ok() && glob::any(&rules.devices.paths, path);
            require(allowed, "devices.paths", || not_in_list(path))
        }),
        "DeviceRequests" => value.as_array().into_iter().flatten().try_for_each(|request| {
            let driver = text(request.get("Driver"));
            let gpu = request["Capabilities"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|all| texts(Some(all)).contains(&"gpu"));
            let allowed = rules.devices.gpus && matches!(driver, "" | "nvidia") && gpu;
            require(allowed, "devices.gpus", || "devices are requested that are not allowed GPUs".to_owned())
        }),
        "Binds" => each(value, |bind| mounts::volume(rules, engine, bind)),
        "Mounts" => {
            value.as_array().into_iter().flatten().try_for_each(|item| mounts::mount(rules, engine, item))
        }
        "RestartPolicy" if matches!(text(value.get("Name")), "" | "no") => Ok(()),
        "Isolation" if value == "default" => Ok(()),
        field if HARMLESS.contains(&field) => Ok(()),
        field => {
            let allowed = rules.host_config.allow.iter().any(|known| known == field);
            require(allowed, "host_config.allow", || unjudged(field))
        }
    }
}

fn mode(value: &Value, harmless: &[&str], list: &[String], rule: &str) -> Result<(), LaunchError> {
    let mode = text(Some(value));
    let allowed = mode.is_empty() || harmless.contains(&mode) || glob::any(list, mode);
    require(allowed, rule, || not_in_list(mode))
}

fn each(value: &Value, judge: impl Fn(&str) -> Result<(), LaunchError>) -> Result<(), LaunchError> {
    value.as_array().into_iter().flatten().try_for_each(|item| judge(text(Some(item))))
}

fn no_new_privileges(option: &str) -> bool {
    matches!(option, "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true")
}

fn bare_capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
}

pub(super) fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
    }
}

fn not_in_list(name: &str) -> String {
    format!("{name:?} is not in its list")
}

fn unjudged(field: &str) -> String {
    format!("no rule is about {field}, and it is not in the list of fields that are allowed unjudged")
}
