//! The command line against a server: files in, records out.

#![expect(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use prefect_config::{Environment, Exit, cli};
use serde_json::{Value, json};
use server::Server;

struct Setup {
    server: Server,
    environment: BTreeMap<String, String>,
    directory: tempfile::TempDir,
}

struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

impl Setup {
    async fn new() -> Self {
        let server = Server::start().await;
        let directory = tempfile::tempdir().unwrap();
        let environment = [
            ("PREFECT_API_URL", server.api_url()),
            ("PREFECT_CLIENT_MAX_RETRIES", "0"),
            ("HOME", "/nowhere"),
            ("ARCHIVER_SCRATCH_FOLDER", "/storage"),
            ("PREFECT_RUNTIME_IMAGE", "runtime:1"),
            ("PREFECT_NETWORK", "dev_internal"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut setup = Self { server, environment, directory };
        for (name, content) in [("S3_USER_FILE", "user\n"), ("S3_PASSWORD_FILE", "pass word")] {
            let path = setup.write(name, content);
            setup.set(name, path.to_str().unwrap());
        }
        setup
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Variables, limits and a pool, as files.
    fn files(&self) {
        self.write("vars.toml", "[s3]\nS3_REGION = 'eu-west-1'\nS3_URL_EXPIRATION_DAYS = 7");
        self.write("limits.toml", "LTS_WRITE_LIMIT = 4");
        self.write("templates/docker.json", TEMPLATE);
        self.write("pools/archival.toml", POOL);
    }

    async fn run(&self, line: &str) -> Ran {
        let line = line
            .replace("DIR", self.directory.path().to_str().unwrap())
            .replace("TOP", top().to_str().unwrap());
        let environment: Environment = self.environment.clone().into_iter().collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = cli::run(line.split(' ').map(Into::into), &environment, &mut out, &mut err).await;
        let text =
            |bytes| String::from_utf8(bytes).unwrap().replace(self.directory.path().to_str().unwrap(), "DIR");
        Ran { exit, out: text(out), err: text(err) }
    }

    /// The calls that changed something since the last time.
    fn written(&self) -> Vec<String> {
        self.server.written().into_iter().map(|written| written.call).collect()
    }
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

const TEMPLATE: &str = r#"{"job_configuration": {"image": "{{ image }}"}, "variables": {"properties": {"image": {}, "networks": {}}}}"#;

const POOL: &str = "
name = 'archival-docker-workpool'
type = 'docker'
base_job_template = '../templates/docker.json'
concurrency_limit = 4
[[queues]]
name = 'default'
concurrency_limit = 2
[[queues]]
name = 'high'
priority = 1
";

const ALL: &str =
    "prefect-config -v DIR/vars.toml -s S3_USER_FILE S3_PASSWORD_FILE -l DIR/limits.toml -w DIR/pools";

const SECRET: &str = "block_types/slug/secret/block_documents/name/s3-user";

#[tokio::test]
async fn a_new_server_gets_everything_and_a_second_run_changes_nothing() {
    let setup = Setup::new().await;
    setup.files();
    let first = setup.run(ALL).await;
    insta::assert_snapshot!(first.out, @r"
    variable archiver_scratch_folder: created
    variable archiver_target_size_gb: created
    variable archiver_num_workers: created
    variable s3_region: created
    variable s3_url_expiration_days: created
    variable s3_archival_storage_class: created
    secret s3-user: created
    secret s3-password: created
    tag limit write-to-lts-share: created
    work pool archival-docker-workpool: created
    work queue archival-docker-workpool/default: created
    work queue archival-docker-workpool/high: created
    ");
    assert_eq!((first.exit, first.err.as_str()), (Exit::Done, ""));
    insta::assert_snapshot!(setup.written().join("\n"), @r"
    POST variables
    POST variables
    POST variables
    POST variables
    POST variables
    POST variables
    POST block_documents
    POST block_documents
    POST v2/concurrency_limits
    POST work_pools
    PATCH work_queues/00000000-0000-0000-0000-00000000000d
    POST work_pools/archival-docker-workpool/queues
    ");
    assert_eq!(setup.server.record("variables/name/s3_url_expiration_days").unwrap()["value"], json!("7"));
    assert_eq!(setup.server.record(SECRET).unwrap()["data"], json!({"value": "user"}));
    let queue = setup.server.record("work_pools/archival-docker-workpool/queues/default").unwrap();
    assert_eq!((&queue["concurrency_limit"], &queue["priority"]), (&json!(2), &json!(1)));

    let second = setup.run(ALL).await;
    assert_eq!(second.exit, Exit::Done);
    assert!(second.out.lines().rev().skip(1).all(|line| line.ends_with(": unchanged")), "{}", second.out);
    assert!(second.out.ends_with("everything is as it should be\n"));
    assert_eq!(setup.written(), [""; 0]);
}

#[tokio::test]
async fn what_differs_is_changed_and_told() {
    let setup = Setup::new().await;
    setup.files();
    setup.run(ALL).await;
    setup.written();
    setup.write("vars.toml", "S3_REGION = 'eu-central-1'");
    setup.write("S3_USER_FILE", "other");
    setup.write("limits.toml", "LTS_WRITE_LIMIT = 1");
    setup.write(
        "pools/archival.toml",
        &POOL.replace("concurrency_limit = 2", "concurrency_limit = 'unlimited'"),
    );
    let ran = setup.run(ALL).await;
    let changes: Vec<_> = ran.out.lines().filter(|line| !line.ends_with(": unchanged")).collect();
    insta::assert_snapshot!(changes.join("\n"), @r#"
    variable s3_region: updated ("eu-west-1" -> "eu-central-1")
    secret s3-user: updated (value)
    tag limit write-to-lts-share: updated (4 -> 1)
    work queue archival-docker-workpool/default: updated (concurrency limit 2 -> unlimited)
    "#);
    insta::assert_snapshot!(setup.written().join("\n"), @r"
    POST variables
    PATCH block_documents/00000000-0000-0000-0000-000000000009
    PATCH v2/concurrency_limits/tag:write-to-lts-share
    PATCH work_queues/00000000-0000-0000-0000-00000000000d
    ");
    assert!(!ran.out.contains("other"));
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let setup = Setup::new().await;
    setup.files();
    let ran = setup.run(&format!("{ALL} --dry-run")).await;
    assert_eq!(ran.exit, Exit::Done);
    assert!(ran.out.starts_with("[dry run] variable archiver_scratch_folder: created\n"), "{}", ran.out);
    assert_eq!(setup.written(), [""; 0]);
}

#[tokio::test]
async fn a_fault_anywhere_prevents_every_write() {
    let mut setup = Setup::new().await;
    setup.files();
    setup.write("pools/archival.toml", &POOL.replace("priority", "prority"));
    let ran = setup.run(ALL).await;
    assert_eq!(ran.exit, Exit::Configuration);
    insta::assert_snapshot!(ran.err, @r"
    error: failed to use DIR/pools/archival.toml: queues[1].prority: there is no such key
    hint: the nearest known key is priority
    ");

    setup.write("pools/archival.toml", &POOL.replace("'docker'", "'process'"));
    setup.server.keep(
        "work_pools/archival-docker-workpool",
        json!({"name": "archival-docker-workpool", "type": "docker", "base_job_template": {}}),
    );
    let ran = setup.run(ALL).await;
    assert_eq!(ran.exit, Exit::Configuration);
    insta::assert_snapshot!(ran.err, @r#"
    error: failed to set up the work pool archival-docker-workpool: it exists with type "docker", not "process"
    hint: the type of a pool cannot change: delete the pool, or give this one another name
    "#);

    setup.environment.remove("S3_PASSWORD_FILE");
    let ran = setup.run(ALL).await;
    insta::assert_snapshot!(ran.err, @"error: failed to use the environment variable S3_PASSWORD_FILE: it is not set; it must name the file that holds the secret");
    assert_eq!(setup.written(), [""; 0]);
}

#[tokio::test]
async fn servers_that_cannot_or_will_not_have_their_exit_codes() {
    let mut setup = Setup::new().await;
    setup.files();
    for (status, exit) in [
        (StatusCode::UNAUTHORIZED, Exit::Configuration),
        (StatusCode::UNPROCESSABLE_ENTITY, Exit::Failed),
        (StatusCode::INTERNAL_SERVER_ERROR, Exit::TryAgain),
    ] {
        setup.server.refuse_writes(status);
        let ran = setup.run(ALL).await;
        assert_eq!(ran.exit, exit, "{}", ran.err);
        assert!(
            ran.err.starts_with("error: failed to save the variable archiver_scratch_folder\n  because: "),
            "{}",
            ran.err
        );
    }
    setup.set("PREFECT_API_URL", "http://127.0.0.1:1/api");
    let ran = setup.run(ALL).await;
    assert_eq!(ran.exit, Exit::Unavailable, "{}", ran.err);
    assert!(ran.err.contains("hint: is the Prefect server running"), "{}", ran.err);
    setup.environment.remove("PREFECT_API_URL");
    assert_eq!(setup.run(ALL).await.exit, Exit::Configuration);
}

#[tokio::test]
async fn the_command_line_is_checked() {
    let setup = Setup::new().await;
    for line in [
        "prefect-config",
        "prefect-config deploy",
        "prefect-config --nonsense",
        "prefect-config deploy --all -n x",
    ] {
        assert_eq!(setup.run(line).await.exit, Exit::Usage, "{line}");
    }
    let help = setup.run("prefect-config --help").await;
    assert_eq!(help.exit, Exit::Done);
    assert!(help.out.contains("--work-pools"));
}

/// Puts the two pools of the project on the server.
fn keep_pools(server: &Server) {
    for name in ["archival-docker-workpool", "retrieval-docker-workpool"] {
        let template = std::fs::read_to_string(top().join("job-templates/docker.json")).unwrap();
        let template: Value = serde_json::from_str(&template).unwrap();
        server.keep(
            &format!("work_pools/{name}"),
            json!({"name": name, "type": "docker", "base_job_template": template}),
        );
    }
}

#[tokio::test]
async fn the_deployments_of_the_project_are_deployed_by_either_command() {
    let setup = Setup::new().await;
    keep_pools(&setup.server);
    let first = setup.run("prefect --no-prompt deploy --all --prefect-file TOP/prefect/prefect.yaml").await;
    assert_eq!((first.exit, first.err.as_str()), (Exit::Done, ""));
    insta::assert_snapshot!(first.out, @r"
    deployment archive_datasetlist/datasets_archival: created
    deployment retrieve_datasetlist/datasets_retrieval: created
    ");
    let mut written = setup.server.written();
    let deployment = written.iter_mut().find(|written| written.call == "POST deployments").unwrap();
    let body = deployment.body.as_object_mut().unwrap();
    body.remove("flow_id").unwrap();
    let schemas: Value =
        serde_json::from_str(&std::fs::read_to_string(top().join("prefect/flows.json")).unwrap()).unwrap();
    assert_eq!(body.remove("parameter_openapi_schema").unwrap(), schemas["archive_datasetlist"]);
    insta::assert_json_snapshot!(deployment.body, @r#"
    {
      "concurrency_limit": 2,
      "concurrency_options": {
        "collision_strategy": "ENQUEUE"
      },
      "description": "Archives the datasets of a SciCat job.",
      "enforce_parameter_schema": true,
      "entrypoint": "./archiver/flows/archive_datasets_flow.py:archive_datasets_flow",
      "job_variables": {
        "image": "runtime:1",
        "image_pull_policy": "Never",
        "networks": [
          "dev_internal"
        ],
        "registry_credentials": {
          "password": "{{ prefect.blocks.secret.github-password }}",
          "registry_url": "ghcr.io",
          "username": "{{ prefect.blocks.secret.github-user }}"
        }
      },
      "name": "datasets_archival",
      "parameters": {},
      "paused": false,
      "pull_steps": [
        {
          "prefect.deployments.steps.set_working_directory": {
            "directory": "/app/backend"
          }
        }
      ],
      "schedules": [],
      "tags": [],
      "version": "1.0.0",
      "work_pool_name": "archival-docker-workpool",
      "work_queue_name": "default"
    }
    "#);

    // An image whose entrypoint is prefect-config is given the same words as arguments.
    let second = setup
        .run("prefect-config prefect --no-prompt deploy --all --prefect-file TOP/prefect/prefect.yaml")
        .await;
    insta::assert_snapshot!(second.out, @r"
    deployment archive_datasetlist/datasets_archival: unchanged
    deployment retrieve_datasetlist/datasets_retrieval: unchanged
    everything is as it should be
    ");
    assert_eq!(setup.written(), [""; 0]);
}

#[tokio::test]
async fn schedules_and_limits_settle() {
    let setup = Setup::new().await;
    keep_pools(&setup.server);
    let yaml = "
deployments:
- name: d
  entrypoint: f
  concurrency_limit: 3
  schedules: [{cron: '0 3 * * *', active: false}, {interval: 3600, parameters: {a: 1}}, {rrule: 'FREQ=DAILY'}]
  work_pool: {name: archival-docker-workpool}
";
    setup.write("prefect.yaml", yaml);
    let deploy = "prefect-config deploy -n f/d --prefect-file DIR/prefect.yaml";
    let first = setup.run(deploy).await;
    assert_eq!((first.out.as_str(), first.exit), ("deployment f/d: created\n", Exit::Done), "{}", first.err);
    let again = setup.run(deploy).await;
    assert_eq!(again.out, "deployment f/d: unchanged\neverything is as it should be\n");
    insta::assert_snapshot!(again.err, @r#"warning: DIR/prefect.yaml: deployments[d]: no schema for the flow "f", it takes any parameters"#);

    setup.write("prefect.yaml", &yaml.replace("concurrency_limit: 3", "").replace("3600", "60"));
    assert_eq!(setup.run(deploy).await.out, "deployment f/d: updated (schedules, concurrency limit)\n");
}

#[tokio::test]
async fn a_deployment_needs_its_pool() {
    let setup = Setup::new().await;
    let ran = setup.run("prefect-config deploy --all --prefect-file TOP/prefect/prefect.yaml").await;
    assert_eq!(ran.exit, Exit::Configuration, "{}", ran.err);
    insta::assert_snapshot!(ran.err, @r#"
    error: failed to deploy archive_datasetlist/datasets_archival: the server has no work pool "archival-docker-workpool"
    hint: register the work pools first: prefect-config --work-pools DIR
    "#);
    assert_eq!(setup.written(), [""; 0]);
}

#[tokio::test]
async fn the_files_of_the_project_are_sound() {
    let mut setup = Setup::new().await;
    for environment in ["dev", "qa", "prod"] {
        setup.set("PREFECT_JOB_TEMPLATE", &format!("prefect-jobtemplate-{environment}.json"));
        let line = format!(
            "prefect-config -v TOP/prefect/vars_{environment}.toml -l TOP/prefect/concurrency-limits.toml -w TOP/workpools"
        );
        let ran = setup.run(&line).await;
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""), "{environment}");
    }
    let deployed = setup.run("prefect-config deploy --all --prefect-file TOP/prefect/prefect.yaml").await;
    assert_eq!((deployed.exit, deployed.err.as_str()), (Exit::Done, ""));
}
