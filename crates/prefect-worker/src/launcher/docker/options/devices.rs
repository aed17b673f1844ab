//! Devices of the host and what is asked of device drivers.

use bollard::models::{DeviceMapping, DeviceRequest};
use serde_json::Value;

use super::super::super::LaunchError;
use super::super::super::fields::{text, wrong};
use super::engine_form;

/// The engine's word for "as many as there are".
const ALL: i64 = -1;

/// `all`, a number of GPUs, or `device=ID,ID…`; 0 asks for none.
pub(super) fn gpus(path: &str, value: Value) -> Result<Option<DeviceRequest>, LaunchError> {
    let written = text(path, value)?;
    let form = "all, a number of GPUs, or device=ID,ID…";
    let request = DeviceRequest { capabilities: Some(vec![vec!["gpu".to_owned()]]), ..Default::default() };
    if let Some(ids) = written.trim().strip_prefix("device=") {
        let ids: Vec<String> = ids.split(',').map(|id| id.trim().to_owned()).collect();
        if ids.iter().any(String::is_empty) {
            return Err(wrong(path, form, &Value::String(written)));
        }
        return Ok(Some(DeviceRequest { device_ids: Some(ids), ..request }));
    }
    match written.trim() {
        "all" => Ok(Some(DeviceRequest { count: Some(ALL), ..request })),
        count => match count.parse::<u32>() {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some(DeviceRequest { count: Some(i64::from(count)), ..request })),
            Err(_) => Err(wrong(path, form, &Value::String(written))),
        },
    }
}

/// `{"driver": …, "count": …, "device_ids": …, "capabilities": …, "options": …}`.
pub(super) fn request(path: &str, value: Value) -> Result<DeviceRequest, LaunchError> {
    let names = [
        ("driver", "Driver"),
        ("count", "Count"),
        ("device_ids", "DeviceIDs"),
        ("capabilities", "Capabilities"),
        ("options", "Options"),
    ];
    let request: DeviceRequest = engine_form(path, value, &names)?;
    if request.count.is_some_and(|count| count != 0)
        && request.device_ids.as_ref().is_some_and(|ids| !ids.is_empty())
    {
        let message = format!("{path} has both count and device_ids; keep one");
        return Err(LaunchError::Configuration { message });
    }
    Ok(request)
}

/// `/dev/host[:/dev/container[:rwm]]`, or the engine's own object.
pub(super) fn mapping(path: &str, value: Value) -> Result<DeviceMapping, LaunchError> {
    let form = "a device such as /dev/fuse or /dev/a:/dev/b:rwm";
    let mapping = if value.is_object() {
        let names = [
            ("path_on_host", "PathOnHost"),
            ("path_in_container", "PathInContainer"),
            ("cgroup_permissions", "CgroupPermissions"),
        ];
        engine_form::<DeviceMapping>(path, value, &names)?
    } else {
        let written = text(path, value)?;
        let parts: Vec<&str> = written.trim().split(':').collect();
        let (host, container, permissions) = match parts.as_slice() {
            [host] => (*host, *host, "rwm"),
            [host, second] if second.starts_with('/') => (*host, *second, "rwm"),
            [host, permissions] => (*host, *host, *permissions),
            [host, container, permissions] => (*host, *container, *permissions),
            _ => return Err(wrong(path, form, &Value::String(written))),
        };
        DeviceMapping {
            path_on_host: Some(host.to_owned()),
            path_in_container: Some(container.to_owned()),
            cgroup_permissions: Some(permissions.to_owned()),
        }
    };
    let host = mapping.path_on_host.clone().unwrap_or_default();
    let complete = DeviceMapping {
        path_in_container: mapping.path_in_container.or_else(|| Some(host.clone())),
        cgroup_permissions: mapping.cgroup_permissions.or_else(|| Some("rwm".to_owned())),
        path_on_host: Some(host),
    };
    let absolute = |path: &Option<String>| path.as_ref().is_some_and(|path| path.starts_with('/'));
    let permitted = complete
        .cgroup_permissions
        .as_ref()
        .is_some_and(|letters| !letters.is_empty() && letters.chars().all(|letter| "rwm".contains(letter)));
    if !(absolute(&complete.path_on_host) && absolute(&complete.path_in_container) && permitted) {
        let message = format!("{path} must be {form}; devices of a CDI driver go into device_requests");
        return Err(LaunchError::Configuration { message });
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn body(value: Value) -> Value {
        json!(gpus("gpus", value).unwrap())
    }

    #[test]
    fn gpus_are_asked_for_as_docker_run_does() {
        assert_eq!(body(json!("all")), json!({"Count": -1, "Capabilities": [["gpu"]]}));
        assert_eq!(body(json!(2)), json!({"Count": 2, "Capabilities": [["gpu"]]}));
        assert_eq!(
            body(json!("device=0,GPU-3a")),
            json!({"DeviceIDs": ["0", "GPU-3a"], "Capabilities": [["gpu"]]})
        );
        assert_eq!(body(json!(0)), Value::Null);
        for bad in
            [json!("some"), json!(-1), json!(1.5), json!("device="), json!("device=0,,1"), json!(["all"])]
        {
            assert!(gpus("gpus", bad.clone()).unwrap_err().to_string().contains("gpus must be"), "{bad}");
        }
    }

    #[test]
    fn requests_to_drivers_take_the_engines_or_docker_pys_names() {
        let request =
            request("r", json!({"driver": "nvidia", "count": 1, "Capabilities": [["gpu", "utility"]]}));
        assert_eq!(
            json!(request.unwrap()),
            json!({"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu", "utility"]]})
        );
        for bad in [
            json!({"number": 1}),
            json!({"count": "1"}),
            json!({"count": 1, "device_ids": ["0"]}),
            json!("gpu"),
        ] {
            assert!(
                super::request("device_requests[0]", bad.clone())
                    .unwrap_err()
                    .to_string()
                    .contains("device_requests[0]"),
                "{bad}"
            );
        }
    }

    #[test]
    fn devices_default_to_the_same_path_and_all_permissions() {
        let of = |value| json!(mapping("d", value).unwrap());
        let fuse =
            json!({"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"});
        assert_eq!(of(json!("/dev/fuse")), fuse);
        assert_eq!(of(json!({"path_on_host": "/dev/fuse"})), fuse);
        assert_eq!(of(json!("/dev/a:/dev/b:r"))["CgroupPermissions"], "r");
        assert_eq!(of(json!("/dev/a:rw"))["PathInContainer"], "/dev/a");
        for bad in [
            json!("fuse"),
            json!("/a:/b:x"),
            json!("/a:/b:"),
            json!("/a:b:rw:m"),
            json!("vendor.com/gpu=0"),
            json!({"path": "/a"}),
        ] {
            assert!(
                mapping("devices[0]", bad.clone()).unwrap_err().to_string().contains("devices[0]"),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in ".{0,40}") {
            if let Ok(mapping) = mapping("d", json!(text)) {
                prop_assert!(mapping.path_on_host.unwrap().starts_with('/'));
            }
            if let Ok(Some(request)) = gpus("g", json!(text)) {
                prop_assert!(request.count.is_some() != request.device_ids.is_some());
            }
        }
    }
}
