//! The job templates that the project ships.

use prefect_api::template::JobTemplate;
use serde_json::{Map, Value, json};

use super::*;

fn configured(template: &str) -> Map<String, Value> {
    let template: BaseJobTemplate = serde_json::from_str(template).unwrap();
    let template = JobTemplate::parse(&template).unwrap();
    match template.configure(&Map::new(), &|_| None).unwrap() {
        Value::Object(configuration) => configuration,
        other => panic!("not an object: {other}"),
    }
}

#[test]
fn the_default_template_is_valid_and_has_prefects_variables() {
    let template = JobTemplate::parse(&default_template()).unwrap();
    let mut names: Vec<&str> = template.variable_names().collect();
    names.sort_unstable();
    let expected = "auto_remove command container_create_kwargs env image image_pull_policy labels mem_limit \
                    memswap_limit name network_mode networks privileged registry_credentials stream_output volumes";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn the_default_templates_defaults_are_prefects() {
    let configuration = configured(include_str!("../../../../../job-templates/docker.json"));
    assert_eq!(
        Value::Object(configuration),
        json!({"auto_remove": false, "stream_output": true, "privileged": false})
    );
}

#[test]
fn the_templates_of_the_environments_give_valid_configurations() {
    for (template, policy, network) in [
        (include_str!("../../../../../job-templates/prefect-jobtemplate-dev.json"), PullPolicy::Never, None),
        (
            include_str!("../../../../../job-templates/prefect-jobtemplate-qa.json"),
            PullPolicy::IfNotPresent,
            Some("qa_internal"),
        ),
        (
            include_str!("../../../../../job-templates/prefect-jobtemplate-prod.json"),
            PullPolicy::IfNotPresent,
            Some("prod_internal"),
        ),
    ] {
        let config = DockerConfig::parse(&configured(template)).unwrap();
        assert!(config.auto_remove && config.ignored.is_empty());
        assert_eq!((config.pull_policy, config.networks.first().map(String::as_str)), (policy, network));
    }
}
