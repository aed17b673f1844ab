//! The job templates that the project ships.

use prefect_api::template::JobTemplate;
use serde_json::{Map, Value, json};

use super::super::Treatment;
use super::image::PullPolicy;
use super::*;

fn configured(template: &str) -> Map<String, Value> {
    let template: BaseJobTemplate = serde_json::from_str(template).unwrap();
    let template = JobTemplate::parse(&template).unwrap();
    match template.configure(&Map::new(), &|_| None).unwrap() {
        Value::Object(configuration) => configuration,
        other => panic!("not an object: {other}"),
    }
}

/// The variables of the Python worker, in the order of its form.
const PYTHONS: [&str; 16] = [
    "command",
    "env",
    "labels",
    "name",
    "image",
    "registry_credentials",
    "image_pull_policy",
    "networks",
    "network_mode",
    "auto_remove",
    "volumes",
    "stream_output",
    "mem_limit",
    "memswap_limit",
    "privileged",
    "container_create_kwargs",
];

#[test]
fn the_default_template_offers_what_the_worker_understands() {
    let template = default_template();
    let mut names: Vec<&str> =
        template.variables["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let parsed = JobTemplate::parse(&template).unwrap();
    let mut used: Vec<&str> = parsed.variable_names().collect();
    used.sort_unstable();
    assert_eq!(used, names, "each variable has its place in the job configuration");
    let mut understood: Vec<&str> =
        PYTHONS.into_iter().chain(options::variables()).map(|name| name as &str).collect();
    understood.extend(["secret_files", "api_credentials_as_files", "pull_timeout_seconds"]);
    let treatment = json!(Treatment::default());
    let treatment = treatment.as_object().unwrap().keys().filter_map(|name| match name.as_str() {
        "stream_output" => None,
        "log_output" => Some("log_container_output"),
        name => names.iter().copied().find(|known| *known == name),
    });
    understood.extend(treatment);
    understood.sort_unstable();
    assert_eq!(names, understood);
}

#[test]
fn prefects_own_variables_come_first_and_in_prefects_order() {
    let text = include_str!("../../../../../job-templates/docker.json");
    let places: Vec<usize> =
        PYTHONS.iter().map(|name| text.find(&format!("\"{name}\": \"{{{{")).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(text.find("\"gpus\"").unwrap() > *places.last().unwrap());
}

#[test]
fn the_defaults_of_the_default_template_are_prefects_and_the_workers() {
    let mut configuration = configured(include_str!("../../../../../job-templates/docker.json"));
    assert_eq!(Treatment::take(&mut configuration).unwrap(), Treatment::default());
    assert_eq!(
        Value::Object(configuration),
        json!({"auto_remove": false, "stream_output": true, "privileged": false, "api_credentials_as_files": false})
    );
}

#[test]
fn every_variable_is_in_the_guide() {
    let guide = include_str!("../../../../../docs/guides/docker-worker.md");
    for name in default_template().variables["properties"].as_object().unwrap().keys() {
        assert!(guide.contains(&format!("\n| `{name}` |")), "{name}");
    }
}

#[test]
fn every_variable_is_described() {
    for (name, schema) in default_template().variables["properties"].as_object().unwrap() {
        let typed = ["type", "anyOf"].iter().any(|key| schema.get(key).is_some());
        let told = ["title", "description"].iter().all(|key| schema[key].is_string());
        assert!(typed && told, "{name}");
    }
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
        let mut configuration = configured(template);
        Treatment::take(&mut configuration).unwrap();
        let config = DockerConfig::parse(&configuration).unwrap();
        assert!(config.auto_remove && config.ignored.is_empty());
        assert_eq!((config.pull_policy, config.networks.first().map(String::as_str)), (policy, network));
    }
}
