//! Real servers check job variables against our base job templates, as they do for Prefect's own, and the UI makes a
//! form of them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use e2e::programs::project_root;
use e2e::runs;
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::flow_run::NewDeploymentRun;
use prefect_api::id::DeploymentId;
use prefect_api::work_pool::{BaseJobTemplate, NewWorkPool};
use prefect_client::Client;
use serde_json::{Map, Value, json};
use testkit::browser::Browser;
use testkit::prefect::{Database, Options, PrefectServer, Release};

fn template(kind: &str) -> Value {
    let path = project_root().join("job-templates").join(format!("{kind}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Makes a pool of this template and a deployment in it; the deployment has job variables of its own.
async fn deploy(client: &Client, kind: &str, template: &Value, job_variables: Value) -> DeploymentId {
    let base_job_template: BaseJobTemplate = serde_json::from_value(template.clone()).unwrap();
    let pool = NewWorkPool {
        name: kind.to_owned(),
        kind: kind.to_owned(),
        base_job_template: Some(base_job_template),
        description: None,
        concurrency_limit: None,
        is_paused: false,
    };
    client.create_work_pool(&pool).await.unwrap();
    let flow_id = client.create_flow("flow").await.unwrap().id;
    let settings = DeploymentSettings {
        work_pool_name: Some(kind.to_owned()),
        parameter_openapi_schema: json!({"type": "object", "properties": {}}),
        job_variables: object(job_variables),
        ..DeploymentSettings::default()
    };
    let deployment =
        NewDeployment { name: kind.to_owned(), flow_id, settings, enforce_parameter_schema: false };
    client.create_deployment(&deployment).await.unwrap().id
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

/// Whether the server makes a run with this job variable.
async fn takes(client: &Client, deployment: DeploymentId, name: &str, value: &Value) -> bool {
    let job_variables = Some(Map::from_iter([(name.to_owned(), value.clone())]));
    let run = NewDeploymentRun { job_variables, ..NewDeploymentRun::default() };
    match client.create_deployment_run(deployment, &run).await {
        Ok(_) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(!error.is_transient() && text.contains(name), "{name} = {value}: {text}");
            false
        }
    }
}

async fn checks(release: Release) {
    let server = PrefectServer::start(Options { release, ..Options::default() }).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let docker = template("docker");
    let own = json!({"image": "i:1", "cpus": 2, "mem_limit": "1g", "start_timeout_seconds": 60});
    let deployment = deploy(&client, "docker", &docker, own).await;
    let mut examples = 0;
    for (name, property) in docker["variables"]["properties"].as_object().unwrap() {
        // Python's examples are items where a list is wanted.
        let of_python = ["image", "volumes"].contains(&name.as_str());
        for example in property["examples"].as_array().into_iter().flatten().filter(|_| !of_python) {
            assert!(takes(&client, deployment, name, example).await, "{name} = {example}");
            examples += 1;
        }
    }
    assert!(examples > 25, "{examples}");
    for (name, value) in [
        ("cpus", json!(-1)),
        ("cpus", json!({})),
        ("pids_limit", json!("many")),
        ("ulimits", json!("nofile=1")),
        ("cap_add", json!([1])),
        ("log_options", json!([])),
        ("read_only", json!("perhaps")),
        ("start_timeout_seconds", json!(-1)),
        ("crash_retries", json!(1001)),
        ("image_pull_policy", json!("Sometimes")),
    ] {
        assert!(!takes(&client, deployment, name, &value).await, "{name} = {value}");
    }
    let deployment = deploy(&client, "process", &template("process"), json!({"command": "true"})).await;
    assert!(takes(&client, deployment, "crash_retries", &json!(3)).await);
    assert!(!takes(&client, deployment, "report_exit_state", &json!("perhaps")).await);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_oldest_server_checks_our_job_variables() {
    checks(Release::Oldest).await;
}

#[tokio::test]
async fn the_reference_server_checks_our_job_variables() {
    checks(Release::Reference).await;
}

#[tokio::test]
async fn the_newest_server_checks_our_job_variables() {
    checks(Release::Newest).await;
}

#[tokio::test]
async fn the_form_has_every_job_variable_and_saves_the_template_as_it_was() {
    // Nobody presses a button a second time when SQLite was busy.
    let options = Options { database: Database::Postgres, ..Options::default() };
    let server = PrefectServer::start(options).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let docker = template("docker");
    deploy(&client, "docker", &docker, json!({})).await;
    let browser = Browser::start(1200, 1000).await.unwrap();
    browser.open(&format!("{}/work-pools/work-pool/docker/edit", server.ui_url())).await.unwrap();
    for (name, property) in docker["variables"]["properties"].as_object().unwrap() {
        let title = property["title"].as_str().unwrap();
        // Where there are several types, the title is above them.
        let title =
            if property["anyOf"].is_array() { title.to_owned() } else { format!("{title} (Optional)") };
        browser.see(&title).await.expect(name);
    }
    // The block's own title: the form has found what the template refers to.
    browser.see("DockerRegistryCredentials").await.unwrap();
    browser.click("Save").await.unwrap();
    browser.see("Work pool updated").await.unwrap();
    let saved = client.read_work_pool("docker").await.unwrap().unwrap().base_job_template;
    assert_eq!(serde_json::to_value(saved).unwrap(), docker);
    browser.stop().await.unwrap();
    server.stop().await.unwrap();
}
