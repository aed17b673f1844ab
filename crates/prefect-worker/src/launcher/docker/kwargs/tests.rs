//! docker-py's forms, and what is refused.

use proptest::prelude::*;
use serde_json::json;

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
        "healthcheck": {"test": "true", "start_period": 5},
        "pids_limit": 100, "cpu_quota": 50000, "nano_cpus": 1_000_000_000, "sysctls": {"net.x": 1},
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
        "Healthcheck": {
          "StartPeriod": 5,
          "Test": [
            "CMD-SHELL",
            "true"
          ]
        },
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
    assert_eq!(options.extra_hosts, Some(ExtraHosts::Listed(vec!["a:1.2.3.4".to_owned()])));
    assert_eq!((options.platform.as_deref(), options.detach), (Some("linux/amd64"), true));
}

#[test]
fn keys_of_objects_are_read_whatever_their_case() {
    let options = parse(json!({
        "mounts": [{"type": "bind", "SOURCE": "/s", "target": "/t", "readonly": true, "BindOptions": {"propagation": "rslave"}}],
        "restart_policy": {"name": "on-failure", "maximumretrycount": 2}, "device_read_bps": [{"path": "/d", "rate": 1}],
        "device_requests": [{"device_ids": ["0"], "Options": null}],
    }))
    .unwrap();
    assert_eq!(
        Value::Object(options.host),
        json!({
            "Mounts": [{"Type": "bind", "Source": "/s", "Target": "/t", "ReadOnly": true, "BindOptions": {"Propagation": "rslave"}}],
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
            "BlkioDeviceReadBps": [{"Path": "/d", "Rate": 1}],
            "DeviceRequests": [{"DeviceIDs": ["0"]}],
        })
    );
}

#[test]
fn ports_are_exposed_and_bound() {
    let options = parse(json!({"ports": {
        "80": null, "81/udp": 8081, "82/tcp": ["0", {"HostPort": 1, "HostIp": "127.0.0.1"}],
    }}))
    .unwrap();
    assert_eq!(options.container["ExposedPorts"], json!({"80/tcp": {}, "81/udp": {}, "82/tcp": {}}));
    assert_eq!(
        options.host["PortBindings"],
        json!({
            "80/tcp": [{"HostIp": "", "HostPort": ""}],
            "81/udp": [{"HostIp": "", "HostPort": "8081"}],
            "82/tcp": [{"HostIp": "", "HostPort": "0"}, {"HostIp": "127.0.0.1", "HostPort": "1"}],
        })
    );
}

#[test]
fn settings_of_networks_are_kept_by_network() {
    let options = parse(
        json!({"networking_config": {"n": {"aliases": ["web"], "IPAMConfig": {"ipv4address": "10.0.0.2"}}}}),
    );
    let endpoint = json!({"Aliases": ["web"], "IPAMConfig": {"IPv4Address": "10.0.0.2"}});
    assert_eq!(options.unwrap().endpoints, BTreeMap::from([("n".to_owned(), endpoint)]));
}

#[test]
fn what_the_engine_would_drop_or_refuse_is_named() {
    for (kwargs, part) in [
        (json!({"shmsize": "64m"}), "container_create_kwargs.shmsize is not an option"),
        (json!({"shmsize": null}), "container_create_kwargs.shmsize is not an option"),
        (json!({"environment": {}}), "set the job variable \"env\" instead"),
        (json!({"network": "n"}), "set the job variable \"networks\" instead"),
        (
            json!({"mac_address": "02:42:ac:11:00:99"}),
            "container_create_kwargs.mac_address is nothing that engines",
        ),
        (
            json!({"ulimits": [{"nam": 1}]}),
            "container_create_kwargs.ulimits[0].nam is not known there: there are Name",
        ),
        (json!({"mounts": [{"Target": "/t", "read_only": true}]}), "mounts[0].read_only is not known"),
        (json!({"mounts": [{"Type": "floppy"}]}), "mounts[0].Type must be one of bind, volume"),
        (json!({"mounts": ["/a:/b"]}), "mounts[0] must be an object"),
        (json!({"cpu_quota": "50000"}), "container_create_kwargs.cpu_quota must be a whole number"),
        (json!({"nano_cpus": 1.5}), "container_create_kwargs.nano_cpus must be a whole number"),
        (json!({"blkio_weight": 70_000}), "container_create_kwargs.blkio_weight must be a whole number"),
        (json!({"shm_size": true}), "container_create_kwargs.shm_size must be an amount"),
        (json!({"init": "yes"}), "container_create_kwargs.init must be true or false"),
        (json!({"dns": "9.9.9.9"}), "container_create_kwargs.dns must be a list"),
        (json!({"uts_mode": "private"}), "container_create_kwargs.uts_mode must be host"),
        (json!({"extra_hosts": ["nocolon"]}), "HOST:ADDRESS"),
        (json!({"extra_hosts": {"a": []}}), "container_create_kwargs.extra_hosts.a must be text"),
        (
            json!({"ports": {"80": {"HostIp": "127.0.0.1"}}}),
            "container_create_kwargs.ports.80 must be a port",
        ),
        (json!({"ports": [80]}), "container_create_kwargs.ports must be an object"),
        (json!({"links": ["a:b"]}), "container_create_kwargs.links must be"),
        (
            json!({"log_config": {"Type": "json-file", "Config": {"max-file": 2}}}),
            "log_config.Config.max-file must be text",
        ),
    ] {
        let error = parse(kwargs).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(json!(1.5)),
        "hunter2|[a-z:/,]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("name|Type|test|Target|[a-z]{1,3}", inner, 0..3)
                .prop_map(|object| Value::Object(object.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_accepted_fits_the_engine_and_errors_show_no_values(
        option in prop::sample::select(OPTIONS.iter().map(|(name, ..)| *name).collect::<Vec<_>>()),
        value in any_value(),
    ) {
        match CreateOptions::parse(&Map::from_iter([(option.to_owned(), value)])) {
            Ok(options) => {
                let mut body = options.container;
                body.insert("HostConfig".to_owned(), Value::Object(options.host));
                serde_json::from_value::<bollard::models::ContainerCreateBody>(Value::Object(body)).unwrap();
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains(option) && !error.contains("hunter2"), "{}", error);
            }
        }
    }
}
