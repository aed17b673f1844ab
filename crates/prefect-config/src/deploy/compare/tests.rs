use prefect_api::deployment::{ConcurrencyOptions, Deployment};
use serde_json::{Map, Value, json};

use super::{compare, ineffective};
use crate::Error;
use crate::deploy::{ConcurrencySpec, DeploymentSpec};
use crate::plan::{Change, Request, Write};

const ID: &str = "00000000-0000-0000-0000-000000000001";

fn map(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).unwrap()
}

fn wanted() -> DeploymentSpec {
    DeploymentSpec {
        flow: "archive_datasetlist".to_owned(),
        name: "datasets_archival".to_owned(),
        entrypoint: "e".to_owned(),
        version: Some("1.0.0".to_owned()),
        description: None,
        tags: vec!["a".to_owned()],
        parameters: Map::new(),
        schema: json!({"type": "object", "properties": {}}),
        enforce_schema: true,
        schedules: Vec::new(),
        paused: None,
        concurrency: Some(ConcurrencySpec {
            limit: 2,
            options: Some(ConcurrencyOptions {
                collision_strategy: "ENQUEUE".to_owned(),
                grace_period_seconds: None,
            }),
        }),
        pool: "p".to_owned(),
        queue: None,
        job_variables: map(json!({"image": "i"})),
        pull_steps: None,
    }
}

/// What the server shows of [`wanted`], with `changes` laid over it.
fn shown(changes: Value) -> Deployment {
    let mut shown = map(json!({
        "id": ID, "name": "datasets_archival", "flow_id": ID, "version": "1.0.0", "description": null,
        "paused": false, "schedules": [], "concurrency_limit": null,
        "global_concurrency_limit": {"id": ID, "name": format!("deployment:{ID}"), "limit": 2},
        "concurrency_options": {"collision_strategy": "ENQUEUE", "grace_period_seconds": null},
        "job_variables": {"image": "i"}, "parameters": {}, "tags": ["a"], "work_queue_name": "default",
        "parameter_openapi_schema": {"type": "object", "properties": {}}, "pull_steps": null, "entrypoint": "e",
        "work_pool_name": "p", "enforce_parameter_schema": true,
    }));
    shown.extend(map(changes));
    serde_json::from_value(Value::Object(shown)).unwrap()
}

fn changed(wanted: &DeploymentSpec, found: Value) -> Vec<String> {
    match compare(wanted, Some(&shown(found))).unwrap() {
        Change::Unchanged => Vec::new(),
        Change::Update { what, .. } => what,
        Change::Create(_) => panic!("it exists"),
    }
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    assert_eq!(changed(&wanted(), json!({})), [""; 0]);
    assert!(matches!(compare(&wanted(), None).unwrap(), Change::Create(_)));
}

#[test]
fn every_difference_is_found() {
    for (found, what) in [
        (json!({"version": "0.9"}), "version"),
        (json!({"description": "None"}), "description"),
        (json!({"entrypoint": "other"}), "entrypoint"),
        (json!({"tags": []}), "tags"),
        (json!({"parameters": {"a": 1}}), "parameters"),
        (json!({"parameter_openapi_schema": {}}), "parameter schema"),
        (json!({"enforce_parameter_schema": false}), "enforce_parameter_schema"),
        (json!({"schedules": [{"schedule": {"cron": "0 3 * * *"}, "active": true}]}), "schedules"),
        (json!({"global_concurrency_limit": null}), "concurrency limit"),
        (json!({"concurrency_options": {"collision_strategy": "CANCEL_NEW"}}), "concurrency options"),
        (json!({"work_pool_name": "q"}), "work pool"),
        (json!({"work_queue_name": "high"}), "work queue"),
        (json!({"job_variables": {"image": "j"}}), "job variables"),
        (json!({"pull_steps": [{}]}), "pull steps"),
    ] {
        assert_eq!(changed(&wanted(), found), [what]);
    }
    assert_eq!(
        changed(&DeploymentSpec { paused: Some(false), ..wanted() }, json!({"paused": true})),
        ["paused"]
    );
}

#[test]
fn a_pause_by_hand_survives_a_change() {
    let Change::Update { write: Write(Request::SaveDeployment { settings, .. }), .. } =
        compare(&wanted(), Some(&shown(json!({"paused": true, "version": "0.9"})))).unwrap()
    else {
        panic!("the version differs")
    };
    assert!(settings.paused);
}

#[test]
fn the_last_job_variable_cannot_go() {
    let none = DeploymentSpec { job_variables: Map::new(), ..wanted() };
    assert!(matches!(compare(&none, Some(&shown(json!({})))), Err(Error::JobVariablesStay { .. })));
    assert!(matches!(compare(&none, Some(&shown(json!({"job_variables": {}})))), Ok(Change::Unchanged)));
}

#[test]
fn job_variables_without_effect_are_told() {
    let pool = serde_json::from_value(json!({"id": ID, "name": "p", "type": "docker",
        "base_job_template": {"job_configuration": {}, "variables": {"properties": {"image": {}, "env": {}}}}}))
    .unwrap();
    let wanted =
        DeploymentSpec { job_variables: map(json!({"image": "i", "env.A": "1", "imgae": "x"})), ..wanted() };
    insta::assert_snapshot!(ineffective(&wanted, &pool).join("\n"), @"archive_datasetlist/datasets_archival: the work pool p does not use the job variable imgae; the nearest that it does is image");
}
