use serde_json::json;

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
fn take(configuration: Value, kwargs: Value) -> Result<Options, LaunchError> {
    let mut fields = Fields::new(configuration.as_object().unwrap().clone());
    let options = Options::take(&mut fields, kwargs.as_object().unwrap())?;
    assert_eq!(fields.rest().collect::<Vec<_>>(), Vec::<&str>::new());
    Ok(options)
}

/// One value of each variable.
fn everything() -> Value {
    json!({
        "cap_add": ["sys_ptrace"], "cap_drop": ["ALL"], "cpus": 1.5, "devices": ["/dev/fuse"],
        "device_requests": [{"driver": "tpu", "count": 1}], "dns": ["9.9.9.9"], "entrypoint": "tini -- 'a b'",
        "extra_hosts": ["db:10.0.0.1"], "gpus": "all", "group_add": [44], "hostname": "h", "init": true,
        "ipc_mode": "private", "log_driver": "json-file", "log_options": {"max-file": 3},
        "mounts": ["type=bind,source=/a,target=/b,readonly"], "pids_limit": 100, "platform": "linux/amd64",
        "read_only": true, "security_opt": ["no-new-privileges"], "shm_size": "64m", "stop_signal": "SIGINT",
        "tmpfs": ["/run:size=1m"], "ulimits": ["nofile=1024:2048"], "user": "1000:1000", "working_dir": "/w",
    })
}

#[test]
fn every_variable_becomes_its_field_of_the_engine() {
    let options = take(everything(), json!({})).unwrap();
    assert_eq!(options.platform.as_deref(), Some("linux/amd64"));
    assert_eq!(options.extra_hosts, BTreeMap::from([("db".to_owned(), "10.0.0.1".to_owned())]));
    let mut body = options.container;
    body.host_config = Some(options.host);
    insta::assert_json_snapshot!(json!(body));
}

#[test]
fn what_nobody_filled_in_is_absent() {
    let names: Vec<String> = everything().as_object().unwrap().keys().cloned().collect();
    for empty in [json!(null), json!(""), json!([]), json!({})] {
        let configuration: Map<String, Value> =
            names.iter().map(|name| (name.clone(), empty.clone())).collect();
        assert_eq!(take(Value::Object(configuration), json!({"hostname": "h"})).unwrap(), Options::default());
    }
}

#[test]
fn a_wrong_form_names_its_variable_and_not_its_value() {
    for name in everything().as_object().unwrap().keys() {
        for wrong in [json!({"hunter2": ["hunter2"]}), json!([["hunter2"]])] {
            let error = take(json!({ name: wrong }), json!({})).unwrap_err().to_string();
            assert!(error.contains(name.as_str()), "{name}: {error}");
            let keys_are_told = error.contains(".hunter2");
            assert!(keys_are_told || !error.contains("hunter2"), "{name}: {error}");
        }
    }
}

#[test]
fn a_variable_and_its_kwarg_together_are_refused_by_both_names() {
    let everything = everything();
    assert!(everything.as_object().unwrap().keys().eq(RIVALS.iter().map(|(name, _)| *name)), "one rule each");
    for (name, rivals) in RIVALS {
        for rival in *rivals {
            let error =
                take(json!({ *name: everything[*name] }), json!({ *rival: "x" })).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains(&format!("container_create_kwargs.{rival}")),
                "{error}"
            );
            assert!(take(json!({ *name: everything[*name] }), json!({ *rival: null })).is_ok());
        }
    }
}
