//! No way around a policy: whatever a job configuration says, by whatever name.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::policy::Policy;

/// Job variables and options of docker-py that take something of the host.
fn grabs() -> Vec<(&'static str, Value)> {
    vec![
        ("privileged", json!(true)),
        ("volumes", json!(["/:/host"])),
        ("volumes", json!(["data:/data"])),
        ("volumes", json!(["/var/run/docker.sock:/var/run/docker.sock:ro"])),
        ("networks", json!(["bridge", "other"])),
        ("network_mode", json!("host")),
        ("network_mode", json!("container:other")),
        ("gpus", json!("all")),
        ("device_requests", json!([{"driver": "cdi", "device_ids": ["x"]}])),
        ("devices", json!(["/dev/sda"])),
        ("mounts", json!(["type=bind,source=/,target=/host"])),
        (
            "mounts",
            json!([{"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "local"}}}]),
        ),
        ("cap_add", json!(["SYS_ADMIN"])),
        ("security_opt", json!(["apparmor=unconfined"])),
        ("ipc_mode", json!("host")),
        ("user", json!("0:0")),
        ("group_add", json!(["docker"])),
        ("log_driver", json!("syslog")),
        ("cgroup_parent", json!("/")),
        ("cgroupns", json!("host")),
        ("device_cgroup_rules", json!(["a *:* rwm"])),
        ("links", json!({"db": "db"})),
        ("oom_kill_disable", json!(true)),
        ("oom_score_adj", json!(-1000)),
        ("pid_mode", json!("host")),
        ("publish_all_ports", json!(true)),
        ("restart_policy", json!({"Name": "always"})),
        ("runtime", json!("other")),
        ("sysctls", json!({"kernel.x": "1"})),
        ("userns_mode", json!("host")),
        ("uts_mode", json!("host")),
        ("volume_driver", json!("x")),
        ("volumes_from", json!(["other"])),
        ("cpu_rt_runtime", json!(1000)),
        ("storage_opt", json!({"size": "1g"})),
        ("log_config", json!({"type": "syslog", "config": {"syslog-address": "udp://x"}})),
        // Harmless ones beside them.
        ("hostname", json!("h")),
        ("shm_size", json!("1m")),
        ("tmpfs", json!({"/run": ""})),
        ("read_only", json!(true)),
        ("init", json!(true)),
        ("dns", json!(["9.9.9.9"])),
    ]
}

/// Fields of a `HostConfig` that may be there although everything is forbidden.
const LEFT: [&str; 8] =
    ["NetworkMode", "ShmSize", "Tmpfs", "ReadonlyRootfs", "Init", "Dns", "ExtraHosts", "Mounts"];

fn strict() -> Policy {
    Policy::parsed("images.allow = ['**']\nnetwork.modes = ['none']")
}

/// The body that a job would get, if it got one.
fn permitted(configuration: &Map<String, Value>) -> Option<Value> {
    let attempt = Attempt::new(uuid::Uuid::nil().into(), "pool", "w");
    let mut job = Job::new(attempt, "n", "true");
    job.base_env.insert("PREFECT_API_URL".to_owned(), "http://api.example/api".to_owned());
    job.configuration = configuration.clone();
    let config = DockerConfig::parse(configuration).ok()?;
    let plan = container::plan(&job, &config, true).ok()?;
    let request = Request {
        body: &plan.body,
        further_networks: &plan.further_networks,
        pull_policy: plan.pull_policy,
        image_user: Some("1000"),
    };
    strict().judge(request).ok()?;
    Some(json!(plan.body))
}

#[test]
fn a_job_that_takes_nothing_runs_and_each_grab_alone_does_not() {
    let base = Map::from_iter([("image".to_owned(), json!("a")), ("network_mode".to_owned(), json!("none"))]);
    assert!(permitted(&base).is_some());
    let harmless = 6;
    let grabs = grabs();
    for (name, value) in &grabs[..grabs.len() - harmless] {
        for place in ["", "container_create_kwargs"] {
            let mut configuration = base.clone();
            if place.is_empty() {
                configuration.insert((*name).to_owned(), value.clone());
            } else {
                configuration.insert(place.to_owned(), json!({ *name: value }));
            }
            let Some(body) = permitted(&configuration) else { continue };
            // Not understood at this place, hence ignored.
            assert_eq!(body["HostConfig"]["NetworkMode"], "none", "{name}");
            assert_eq!(body["HostConfig"].as_object().unwrap().len(), 1, "{name} in {place:?}: {body}");
            assert_eq!(body.get("User"), None, "{name}");
        }
    }
}

fn owned(pairs: Vec<(&str, Value)>) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

proptest! {
    #[test]
    fn whatever_is_asked_for_nothing_of_the_host_is_given(
        variables in prop::collection::vec(prop::sample::select(grabs()), 0..4),
        kwargs in prop::collection::vec(prop::sample::select(grabs()), 0..4),
        isolated in any::<bool>(),
    ) {
        let mut configuration = owned(variables);
        configuration.insert("container_create_kwargs".to_owned(), Value::Object(owned(kwargs)));
        if isolated {
            configuration.insert("network_mode".to_owned(), json!("none"));
            configuration.remove("networks");
        }
        if let Some(body) = permitted(&configuration) {
            let host = body["HostConfig"].as_object().unwrap();
            prop_assert_eq!(&host["NetworkMode"], "none");
            for (field, value) in host {
                prop_assert!(LEFT.contains(&field.as_str()), "{} is {}", field, value);
            }
            prop_assert_eq!(host.get("Mounts"), None);
            prop_assert!(body.get("User").is_none());
        }
    }
}
