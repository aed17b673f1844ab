use serde_json::json;

use super::{DeploymentSpec, Project, Selection, load};
use crate::{Environment, Error};

struct Files(tempfile::TempDir);

impl Files {
    fn new(yaml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("prefect.yaml"), yaml).unwrap();
        Self(directory)
    }

    fn with_schemas(self, schemas: &serde_json::Value) -> Self {
        std::fs::write(self.0.path().join("flows.json"), schemas.to_string()).unwrap();
        self
    }

    fn load(&self, selection: Selection) -> Result<(Vec<DeploymentSpec>, Vec<String>), Error> {
        let project = Project { file: self.0.path().join("prefect.yaml"), schemas: None, selection };
        let environment = Environment::from_iter([
            ("PREFECT_RUNTIME_IMAGE", "runtime:1"),
            ("PREFECT_NETWORK", "dev_internal"),
        ]);
        let (deployments, warnings) = load(&project, &environment)?;
        Ok((deployments, warnings.iter().map(|warning| self.relative(warning)).collect()))
    }

    fn all(&self) -> (Vec<DeploymentSpec>, Vec<String>) {
        self.load(Selection::All).unwrap()
    }

    fn refusal(&self) -> String {
        self.relative(&self.load(Selection::All).unwrap_err().to_string())
    }

    fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn schemas() -> serde_json::Value {
    json!({"archive_datasetlist": {"title": "Parameters", "type": "object", "properties": {"job_id": {"type": "string"}}},
        "retrieve_datasetlist": {"title": "Parameters", "type": "object", "properties": {}}})
}

/// The form of the Python archiver's file: entrypoints of Python, an empty description, a misplaced limit.
const PYTHON: &str = r#"
name: ScopeMArchiver
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: /app/backend
deployments:
- name: datasets_archival 
  version: 1.0.0
  tags: []
  description:
  entrypoint: ./archiver/flows/archive_datasets_flow.py:archive_datasets_flow
  parameters: {}
  work_pool:
    name: archival-docker-workpool
    work_queue_name: default
    job_variables:
      image: "{{ $PREFECT_RUNTIME_IMAGE }}"
      registry_credentials:
        username: "{{ prefect.blocks.secret.github-user }}"
      networks:
        - "{{ $PREFECT_NETWORK }}"
    concurrency_limit:
      limit: 2
      collision_strategy: ENQUEUE
  schedules: []
"#;

#[test]
fn the_file_of_the_python_archiver_is_understood() {
    let (deployments, warnings) = Files::new(PYTHON).with_schemas(&schemas()).all();
    let [archival] = deployments.as_slice() else { panic!("one deployment, not {deployments:?}") };
    assert_eq!(
        (archival.flow.as_str(), archival.name.as_str()),
        ("archive_datasetlist", "datasets_archival")
    );
    assert_eq!(archival.entrypoint, "./archiver/flows/archive_datasets_flow.py:archive_datasets_flow");
    assert_eq!((archival.version.as_deref(), archival.description.as_deref()), (Some("1.0.0"), None));
    assert_eq!(archival.schema, schemas()["archive_datasetlist"]);
    assert_eq!(
        json!(archival.job_variables),
        json!({"image": "runtime:1", "networks": ["dev_internal"],
            "registry_credentials": {"username": "{{ prefect.blocks.secret.github-user }}"}})
    );
    let concurrency = archival.concurrency.as_ref().unwrap();
    assert_eq!(
        (concurrency.limit, concurrency.options.as_ref().unwrap().collision_strategy.as_str()),
        (2, "ENQUEUE")
    );
    assert_eq!(
        archival.pull_steps,
        Some(vec![json!({"prefect.deployments.steps.set_working_directory": {"directory": "/app/backend"}})])
    );
    insta::assert_snapshot!(warnings.join("\n"), @"prefect.yaml: deployments[datasets_archival].work_pool.concurrency_limit: MISPLACED, taken for the deployment's: concurrency_limit belongs to the deployment");
}

#[test]
fn anchors_and_merge_keys_are_what_they_stand_for() {
    let yaml = r"
definitions:
  job: &job {image: a, auto_remove: yes, env: {A: '1'}}
  pool: &pool
    name: p
    job_variables: &variables
      <<: *job
      image: b
deployments:
- {name: one, entrypoint: f, work_pool: *pool}
- name: two
  entrypoint: f
  work_pool:
    <<: *pool
    job_variables: {<<: *variables, env: {B: '2'}}
";
    let (deployments, _) = Files::new(yaml).all();
    assert_eq!(
        json!(deployments[0].job_variables),
        json!({"image": "b", "auto_remove": true, "env": {"A": "1"}})
    );
    assert_eq!(
        json!(deployments[1].job_variables),
        json!({"image": "b", "auto_remove": true, "env": {"B": "2"}})
    );
}

#[test]
fn only_what_is_selected_is_looked_at() {
    let yaml = "
deployments:
- {name: one, entrypoint: f, work_pool: {name: '{{ $UNSET }}'}}
- {name: two, entrypoint: g, work_pool: {name: p}}
";
    let files = Files::new(yaml);
    let names = |wanted: &[&str]| {
        let selection = Selection::Named(wanted.iter().map(|name| (*name).to_owned()).collect());
        files.load(selection).map(|(found, _)| found.into_iter().map(|found| found.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&["two"]).unwrap(), ["two"]);
    assert_eq!(names(&["g/two", "two"]).unwrap(), ["two"]);
    insta::assert_snapshot!(names(&["f/two"]).unwrap_err(), @r#"find the deployment "f/two"; the file has: one, two"#);
    insta::assert_snapshot!(files.refusal(), @"fill in the environment variables that are not set: UNSET (in prefect.yaml: deployments[one].work_pool.name)");
}

#[test]
fn what_is_not_understood_is_told() {
    let yaml = "
extra: 1
build: [{some.step: {}}]
deployments:
- name: one
  entrypoint: flows/main_flow.py:main_flow
  labels: {a: b}
  work_pool: {name: p, priority: 1}
  concurrency_limit: {limit: 1, extra: 2}
";
    let (deployments, warnings) = Files::new(yaml).with_schemas(&schemas()).all();
    assert_eq!(deployments[0].flow, "main-flow");
    assert_eq!(
        json!(deployments[0].schema),
        json!({"title": "Parameters", "type": "object", "properties": {}})
    );
    insta::assert_snapshot!(warnings.join("\n"), @r#"
    prefect.yaml: build: ignored, images are built apart
    prefect.yaml: deployments[one]: the flow of flows/main_flow.py:main_flow is taken to be "main-flow"; say flow_name if not
    prefect.yaml: deployments[one]: no schema for the flow "main-flow", it takes any parameters; the nearest known flow is archive_datasetlist
    prefect.yaml: deployments[one].concurrency_limit.extra: unknown key, ignored
    prefect.yaml: deployments[one].labels: unknown key, ignored
    prefect.yaml: deployments[one].work_pool.priority: unknown key, ignored
    prefect.yaml: extra: unknown key, ignored
    "#);
}

#[test]
fn faults_are_refused_with_their_place() {
    let pool = "work_pool: {name: p}";
    let refusals: Vec<String> = [
        "entrypoint: f".to_owned(),
        pool.to_owned(),
        format!("entrypoint: 'x.py:', {pool}"),
        format!("entrypoint: f, concurrency_limit: 0, {pool}"),
        format!("entrypoint: f, concurrency_limit: {{limit: 1, collision_strategy: WAIT}}, {pool}"),
        format!("entrypoint: f, concurrency_limit: {{limit: 1, grace_period_seconds: 5}}, {pool}"),
        format!("entrypoint: archive_datasetlist, parameters: {{job: 1}}, {pool}"),
        format!("entrypoint: f, triggers: [{{enabled: true}}], {pool}"),
        format!("entrypoint: f, schedules: [{{cron: x}}], {pool}"),
        format!("entrypoint: f, tags: 5, {pool}"),
        format!("entrypoint: f, {pool}}}\n- {{name: d, entrypoint: f, {pool}"),
    ]
    .iter()
    .map(|entry| {
        Files::new(&format!("deployments:\n- {{name: d, {entry}}}")).with_schemas(&schemas()).refusal()
    })
    .collect();
    insta::assert_snapshot!(refusals.join("\n"), @r#"
    use prefect.yaml: deployments[d].work_pool.name: it is missing
    use prefect.yaml: deployments[d].entrypoint: it is missing
    use prefect.yaml: deployments[d].entrypoint: it must be path/file.py:function or the name of a flow
    use prefect.yaml: deployments[d].concurrency_limit: it must be a whole number of at least 1, not "0"
    use prefect.yaml: deployments[d].concurrency_limit.collision_strategy: it must be ENQUEUE or CANCEL_NEW, not "WAIT"
    use prefect.yaml: deployments[d].concurrency_limit.grace_period_seconds: it must be a whole number of at least 60, not "5"
    use prefect.yaml: deployments[d].parameters.job: there is no such key
    use prefect.yaml: deployments[d].triggers: automations are not deployed by this tool; create them with Prefect's own
    use prefect.yaml: deployments[d].schedules[0].cron: a cron line has five fields, "x" has 1
    use prefect.yaml: deployments[d].tags: it must be a list, not a number
    use prefect.yaml: deployments: f/d stands there twice
    "#);
}
