use bollard::models::ContainerCreateBody;
use serde_json::{Value, json};

use super::*;

/// Everything forbidden that can be; the container has to run as somebody.
const NOTHING: &str = "[images]\nallow = ['**']\n[network]\nmodes = ['none']\n";

fn policy(text: &str) -> Policy {
    Policy::parsed(text)
}

/// A container that the strictest policy lets through, changed.
#[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
fn body(container: Value, host: Value) -> ContainerCreateBody {
    let mut body =
        json!({"Image": "a/b:1", "User": "1000", "Cmd": ["x"], "HostConfig": {"NetworkMode": "none"}});
    body.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    body["HostConfig"].as_object_mut().unwrap().extend(host.as_object().unwrap().clone());
    serde_json::from_value(body).unwrap()
}

fn verdict(policy: &Policy, body: &ContainerCreateBody) -> Result<(), String> {
    let request =
        Request { body, further_networks: &[], pull_policy: PullPolicy::Always, image_user: Some("0") };
    match policy.judge(request) {
        Ok(()) => Ok(()),
        Err(LaunchError::Forbidden { rule, .. }) => Err(rule),
        Err(other) => panic!("{other}"),
    }
}

/// A rule, the lines that allow a thing, the thing.
fn cases() -> Vec<(&'static str, &'static str, Value, Value)> {
    let host = |rule, allows, host| (rule, allows, json!({}), host);
    vec![
        host("security.privileged", "security.privileged = true", json!({"Privileged": true})),
        host("security.cap_add", "security.cap_add = ['SYS_PTRACE']", json!({"CapAdd": ["cap_sys_ptrace"]})),
        host(
            "security.security_opt",
            "security.security_opt = ['seccomp=unconfined']",
            json!({"SecurityOpt": ["seccomp=unconfined"]}),
        ),
        host(
            "security.security_opt",
            "security.security_opt = ['no-new-privileges:false']",
            json!({"SecurityOpt": ["no-new-privileges:false"]}),
        ),
        host(
            "security.sysctls",
            "security.sysctls = ['net.core.*']",
            json!({"Sysctls": {"net.core.somaxconn": "1"}}),
        ),
        host("security.groups", "security.groups = ['44']", json!({"GroupAdd": ["44"]})),
        host("security.pid_modes", "security.pid_modes = ['host']", json!({"PidMode": "host"})),
        host("security.ipc_modes", "security.ipc_modes = ['container:*']", json!({"IpcMode": "container:x"})),
        host("security.uts_modes", "security.uts_modes = ['host']", json!({"UTSMode": "host"})),
        host("security.userns_modes", "security.userns_modes = ['host']", json!({"UsernsMode": "host"})),
        host(
            "security.cgroupns_modes",
            "security.cgroupns_modes = ['host']",
            json!({"CgroupnsMode": "host"}),
        ),
        ("security.root", "security.root = true", json!({"User": "0"}), json!({})),
        ("security.root", "security.root = true", json!({"User": ""}), json!({})),
        ("security.root", "security.root = true", json!({"User": "root:root"}), json!({})),
        ("security.root", "security.root = true", json!({"User": "toor"}), json!({})),
        ("security.root", "security.root = true", json!({"User": "+0"}), json!({})),
        host("mounts.bind", "mounts.bind = [{source = '/data'}]", json!({"Binds": ["/data:/x:ro"]})),
        host(
            "mounts.bind",
            "mounts.bind = [{source = '/data', read_only = false}]",
            json!({"Binds": ["/data:/x"]}),
        ),
        host(
            "mounts.bind",
            "mounts.bind = [{source = '/data'}]",
            json!({"Mounts": [{"Type": "bind", "Source": "/data", "Target": "/x", "ReadOnly": true}]}),
        ),
        host("mounts.volumes", "mounts.volumes = ['cache-*']", json!({"Binds": ["cache-1:/x"]})),
        host(
            "mounts.volumes",
            "mounts.volumes = ['cache-*']",
            json!({"Mounts": [{"Type": "volume", "Source": "cache-1", "Target": "/x"}]}),
        ),
        host("network.modes", "network.modes = ['host']", json!({"NetworkMode": "host"})),
        host("network.modes", "network.modes = ['bridge']", json!({"NetworkMode": "default"})),
        host("network.modes", "network.modes = ['container:db']", json!({"NetworkMode": "container:db"})),
        host("network.networks", "network.networks = ['archive_*']", json!({"NetworkMode": "archive_net"})),
        (
            "network.networks",
            "network.networks = ['other']",
            json!({"NetworkingConfig": {"EndpointsConfig": {"other": {}}}}),
            json!({}),
        ),
        host("network.publish_ports", "network.publish_ports = true", json!({"PublishAllPorts": true})),
        host(
            "network.publish_ports",
            "network.publish_ports = true",
            json!({"PortBindings": {"80/tcp": [{"HostPort": "80"}]}}),
        ),
        host(
            "devices.paths",
            "devices.paths = ['/dev/fuse']",
            json!({"Devices": [{"PathOnHost": "/dev/fuse"}]}),
        ),
        host(
            "devices.gpus",
            "devices.gpus = true",
            json!({"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}),
        ),
        host("logging.drivers", "logging.drivers = ['syslog']", json!({"LogConfig": {"Type": "syslog"}})),
        host("host_config.allow", "host_config.allow = ['VolumesFrom']", json!({"VolumesFrom": ["other"]})),
        host("host_config.allow", "host_config.allow = ['CgroupParent']", json!({"CgroupParent": "/"})),
        host("host_config.allow", "host_config.allow = ['Runtime']", json!({"Runtime": "other"})),
        host("host_config.allow", "host_config.allow = ['OomScoreAdj']", json!({"OomScoreAdj": -1000})),
        host(
            "host_config.allow",
            "host_config.allow = ['RestartPolicy']",
            json!({"RestartPolicy": {"Name": "always"}}),
        ),
        host(
            "host_config.allow",
            "host_config.allow = ['DeviceCgroupRules']",
            json!({"DeviceCgroupRules": ["a *:* rwm"]}),
        ),
        host("host_config.allow", "host_config.allow = ['VolumeDriver']", json!({"VolumeDriver": "x"})),
        host("host_config.allow", "host_config.allow = ['Links']", json!({"Links": ["db:db"]})),
        // An empty list takes the masks off /proc.
        host("host_config.allow", "host_config.allow = ['MaskedPaths']", json!({"MaskedPaths": []})),
    ]
}

#[test]
fn each_rule_forbids_and_allows() {
    let strict = policy(NOTHING);
    assert_eq!(verdict(&strict, &body(json!({}), json!({}))), Ok(()));
    for (rule, allows, container, host) in cases() {
        let body = body(container, host);
        assert_eq!(verdict(&strict, &body), Err(rule.to_owned()), "{allows}");
        let mut text = format!("{allows}\nimages.allow = ['**']\n");
        if !allows.starts_with("network.modes") {
            text.push_str("network.modes = ['none']\n");
        }
        assert_eq!(verdict(&policy(&text), &body), Ok(()), "{allows}");
    }
}

#[test]
fn what_looks_like_something_allowed_is_forbidden() {
    let generous = policy(
        "images.allow = ['**']\nmounts.bind = [{source = '/data', read_only = false}]\nmounts.volumes = ['cache']\n\
         devices = {paths = ['/dev/*'], gpus = true}\nnetwork = {modes = ['none'], networks = ['*']}\nsecurity.cap_add = ['NET_ADMIN']",
    );
    for (rule, host) in [
        ("mounts.bind", json!({"Binds": ["/data/../etc:/x"]})),
        ("mounts.bind", json!({"Binds": ["/data:/x:rshared"]})),
        ("mounts.bind", json!({"Binds": ["/data:/x:Z"]})),
        (
            "mounts.bind",
            json!({"Mounts": [{"Type": "bind", "Source": "/data", "Target": "/x", "BindOptions": {"Propagation": "rshared"}}]}),
        ),
        ("mounts.bind", json!({"Mounts": [{"Type": "image", "Source": "x", "Target": "/x"}]})),
        ("mounts.bind", json!({"Mounts": [{"Source": "/data", "Target": "/x"}]})),
        (
            "mounts.volumes",
            json!({"Mounts": [{"Type": "volume", "Source": "cache", "Target": "/x", "VolumeOptions":
            {"DriverConfig": {"Name": "local", "Options": {"type": "none", "o": "bind", "device": "/etc"}}}}]}),
        ),
        ("mounts.volumes", json!({"Binds": ["caches:/x"]})),
        ("mounts.volumes", json!({"Binds": ["./data:/x"]})),
        ("devices.paths", json!({"Devices": [{"PathOnHost": "/dev/../etc/x"}]})),
        ("devices.paths", json!({"Devices": [{"PathOnHost": "/dev/mapper/root"}]})),
        (
            "devices.gpus",
            json!({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/net=all"], "Capabilities": [["gpu"]]}]}),
        ),
        ("devices.gpus", json!({"DeviceRequests": [{"Count": 1, "Capabilities": [["tpu"]]}]})),
        ("network.modes", json!({"NetworkMode": "host"})),
        ("network.modes", json!({"NetworkMode": "container:x"})),
        ("security.cap_add", json!({"CapAdd": ["ALL"]})),
        ("security.cap_add", json!({"CapAdd": ["NET_ADMIN", "SYS_ADMIN"]})),
    ] {
        assert_eq!(verdict(&generous, &body(json!({}), host.clone())), Err(rule.to_owned()), "{host}");
    }
    let further = ["host".to_owned()];
    let body = body(json!({}), json!({}));
    let request =
        Request { body: &body, further_networks: &further, pull_policy: PullPolicy::Never, image_user: None };
    assert!(
        matches!(generous.judge(request), Err(LaunchError::Forbidden { rule, .. }) if rule == "network.modes")
    );
}

#[test]
fn images_and_pull_policies_are_those_of_the_list() {
    let policy = policy(
        "[images]\nallow = ['ghcr.io/team/*']\npull_policies = ['Never']\n[network]\nmodes = ['none']",
    );
    let of = |image: &str| body(json!({"Image": image}), json!({}));
    assert_eq!(verdict(&policy, &of("evil/x:1")), Err("images.allow".to_owned()));
    assert_eq!(verdict(&policy, &of("ghcr.io/team/x:1")), Err("images.pull_policies".to_owned()));
}

#[test]
fn limits_are_given_where_none_are_named_and_kept_where_they_are() {
    let policy = policy(
        "images.allow = ['**']\nnetwork.modes = ['none']\n[limits]\nmemory = '1g'\ncpus = 2\npids = 100\n\
         default_memory = '512m'\ndefault_cpus = 0.5\ndefault_pids = 50",
    );
    let mut plain = body(json!({}), json!({}));
    assert_eq!(verdict(&policy, &plain), Err("limits.memory".to_owned()));
    policy.complete(&mut plain);
    let host = plain.host_config.clone().unwrap();
    assert_eq!(
        (host.memory, host.nano_cpus, host.pids_limit),
        (Some(512 << 20), Some(500_000_000), Some(50))
    );
    assert_eq!(verdict(&policy, &plain), Ok(()));
    for (rule, host) in [
        ("limits.memory", json!({"Memory": 2_i64 << 30})),
        ("limits.memory_swap", json!({"Memory": 1 << 20, "MemorySwap": -1})),
        ("limits.memory_swap", json!({"MemorySwap": 3_i64 << 30})),
        ("limits.cpus", json!({"NanoCpus": 2_000_000_001_i64})),
        ("limits.cpus", json!({"CpuQuota": 300_000})),
        ("limits.cpus", json!({"CpuQuota": 300_000, "CpuPeriod": 100_000})),
        ("limits.pids", json!({"PidsLimit": 101})),
    ] {
        let mut body = body(json!({}), host.clone());
        policy.complete(&mut body);
        assert_eq!(verdict(&policy, &body), Err(rule.to_owned()), "{host}");
    }
    // No limit at all is no way around one.
    let mut unlimited = body(json!({}), json!({"Memory": -1, "PidsLimit": -1, "CpuQuota": -1}));
    policy.complete(&mut unlimited);
    assert_eq!(verdict(&policy, &unlimited), Ok(()));
    assert_eq!(unlimited.host_config.unwrap().pids_limit, Some(50));
}

#[test]
fn what_is_required_must_be_there() {
    for (line, host) in [
        ("require_read_only = true", json!({"ReadonlyRootfs": true})),
        ("require_no_new_privileges = true", json!({"SecurityOpt": ["no-new-privileges"]})),
    ] {
        let policy = policy(&format!("images.allow = ['**']\nnetwork.modes = ['none']\n[security]\n{line}"));
        let rule = line.split(' ').next().unwrap();
        assert_eq!(verdict(&policy, &body(json!({}), json!({}))), Err(format!("security.{rule}")));
        assert_eq!(verdict(&policy, &body(json!({}), host)), Ok(()));
    }
}

#[test]
fn the_user_of_the_image_counts_once_it_is_known() {
    let strict = policy(NOTHING);
    let body = body(json!({"User": ""}), json!({}));
    assert!(strict.needs_image_user(&body));
    let of = |image_user| {
        strict.judge(Request {
            body: &body,
            further_networks: &[],
            pull_policy: PullPolicy::Never,
            image_user,
        })
    };
    assert!(of(None).is_ok() && of(Some("1000:1000")).is_ok());
    assert!(of(Some("")).is_err() && of(Some("prefect")).is_err());
}

#[test]
fn the_example_of_the_guide_is_a_policy_and_names_every_rule() {
    let guide = include_str!("../../../../docs/guides/policy.md");
    let example = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let policy = policy(example);
    assert_eq!(policy.rules.mounts.bind.len(), 2);
    let table: toml::Table = example.parse().unwrap();
    // An unknown key makes the parser name all that it knows.
    for name in table.keys() {
        let text = format!("[images]\nallow = []\n[{name}]\nunheard_of = 1\n").replacen(
            "[images]\nallow = []\n[images]",
            "[images]",
            1,
        );
        let error = toml::from_str::<Sections>(&text).unwrap_err();
        for known in error.message().split('`').skip(3).step_by(2) {
            assert!(
                table[name].as_table().unwrap().contains_key(known),
                "{name}.{known} is missing in the guide"
            );
        }
    }
    let error = toml::from_str::<Sections>("unheard_of = 1").unwrap_err();
    for known in error.message().split('`').skip(3).step_by(2) {
        assert!(table.contains_key(known), "{known} is missing in the guide");
    }
}

#[test]
fn a_file_that_no_policy_can_be_is_explained() {
    let explained = |text: &str| Policy::parse(Path::new("p.toml"), text).unwrap_err().to_string();
    for (text, part) in [
        ("", "missing field `images`"),
        ("[images]", "missing field `allow`"),
        ("[images]\nallow = ['**']\n[security]\npriviledged = true", "line 4: unknown field `priviledged`"),
        ("[images]\nallow = ['**']\n[security]\npriviledged = true", "did you mean privileged?"),
        ("[image]\nallow = ['**']", "did you mean images?"),
        ("[images]\nallow = ['*.x/y']", "is no pattern of images"),
        ("[images]\nallow = ['**']\npull_policies = ['never']", "\"never\" is no pull policy"),
        ("[images]\nallow = ['**']\n[limits]\nmemory = 'lots'", "no amount of memory"),
        ("[images]\nallow = ['**']\n[limits]\ncpus = 0", "limits.cpus must be"),
        ("[images]\nallow = ['**']\n[[mounts.bind]]\nsource = 'data'", "not an absolute path"),
        ("[images]\nallow = ['**']\n[[mounts.bind]]\nsource = '/data/../etc'", "a part . or .."),
        ("[images\n", "p.toml"),
    ] {
        assert!(explained(text).contains(part), "{text}: {}", explained(text));
    }
    let error = Policy::load(Path::new("/no/such/policy.toml")).unwrap_err();
    assert!(error.to_string().contains("read the policy file /no/such/policy.toml"), "{error}");
}
