//! Bad input at the command line: one clear error that names the input and the remedy, the right exit code,
//! and nothing half-done.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::TcpListener;
use std::time::Duration;

use e2e::programs::Programs;
use e2e::runs;
use prefect_api::work_pool::NewWorkPool;
use testkit::prefect::{Options, PrefectServer};
use testkit::process::{Command, Output, Signal};

const DEADLINE: Duration = Duration::from_mins(1);

fn program(name: &str) -> Command {
    Command::new(Programs::find().unwrap().path(name).unwrap()).env("HOME", "/nonexistent")
}

async fn refused(command: Command, code: i32, words: &[&str]) -> Output {
    let output = command.output(DEADLINE).await.unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is not in:\n{}", output.stderr);
    }
    output
}

fn start(pool: &str) -> Command {
    program("prefect-worker").args(["start", "--pool", pool])
}

#[tokio::test]
async fn an_api_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/api");
    let words = [url.as_str(), "hint"];
    let variables = tempfile::NamedTempFile::new().unwrap();
    let config = program("prefect-config").arg("-v").arg(variables.path()).env("PREFECT_API_URL", &url);
    refused(config, 69, &words).await;
    let job = "job_id=00000000-0000-0000-0000-000000000000";
    let flow = program("archiver-flows").args(["run", "archive_datasetlist", "--param", job]);
    refused(flow.env("PREFECT_API_URL", &url), 69, &words).await;
    let run = program("archiver-flows").args(["flow-run", "execute", "00000000-0000-0000-0000-000000000000"]);
    let run = run.env("PREFECT_API_URL", &url).env("PREFECT_FLOW_RUN_REPORT_SECONDS", "3");
    let waited = refused(run, 69, &words).await;
    assert!(waited.stderr.contains("no answer, will try again"), "{}", waited.stderr);
}

/// A worker waits for a server that is away: machines that start together start in any order.
#[tokio::test]
async fn a_worker_waits_for_an_api_that_is_not_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/api");
    let files = tempfile::tempdir().unwrap();
    let command = start("p").env("PREFECT_API_URL", &url).log_to(files.path().join("worker.log"));
    let mut worker = command.spawn().unwrap();
    worker.wait_for_log("the server is away, trying again", DEADLINE).await.unwrap();
    assert!(worker.log().contains(&url), "{}", worker.log());
    assert!(worker.is_running());
    worker.signal(Signal::Terminate).unwrap();
    let status = worker.wait(DEADLINE).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", worker.log());
}

#[tokio::test]
async fn an_api_that_is_not_set_is_a_matter_of_configuration() {
    refused(start("p"), 64, &["PREFECT_API_URL", "hint"]).await;
    refused(program("archiver-flows").args(["flow-run", "execute"]), 2, &["PREFECT__FLOW_RUN_ID"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_refuses_what_it_cannot_serve() {
    let server =
        PrefectServer::start(Options { auth: Some("admin:s3cret-pass".into()), ..Options::default() }).await;
    let server = server.unwrap();
    let env = server.client_env();
    let wrong = start("p").envs(env.clone()).env("PREFECT_API_AUTH_STRING", "admin:wr0ng-pass");
    let output = refused(wrong, 64, &["PREFECT_API_AUTH_STRING"]).await;
    assert!(!output.stderr.contains("wr0ng-pass"), "{}", output.stderr);
    refused(start("unknown-pool").envs(env.clone()), 64, &["unknown-pool", "hint"]).await;

    let client = runs::client(&server.api_url(), &env).unwrap();
    let pool = NewWorkPool {
        name: "processes".to_owned(),
        kind: "process".to_owned(),
        base_job_template: None,
        description: None,
        concurrency_limit: None,
        is_paused: false,
    };
    client.create_work_pool(&pool).await.unwrap();
    let other = start("processes").args(["--type", "docker"]).envs(env.clone());
    refused(other, 64, &["processes", "process", "docker"]).await;

    let template = tempfile::NamedTempFile::new().unwrap();
    let text =
        r#"{"job_configuration": {"image": "{{ picture }}"}, "variables": {"properties": {"image": {}}}}"#;
    std::fs::write(template.path(), text).unwrap();
    let bad = start("new-pool")
        .args(["--type", "docker", "--base-job-template"])
        .arg(template.path())
        .envs(env.clone());
    refused(bad, 64, &["picture"]).await;
    assert!(client.read_work_pool("new-pool").await.unwrap().is_none(), "a pool was made of a bad template");

    let deaf =
        start("new-pool").args(["--type", "docker"]).envs(env).env("DOCKER_HOST", "unix:///nonexistent.sock");
    refused(deaf, 69, &["/nonexistent.sock", "hint"]).await;
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_with_an_unknown_key_writes_nothing() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let variables = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(variables.path(), "[s3]\nS3_REGION = \"eu\"\nS3_REGOIN = \"eu\"\n").unwrap();
    let config = program("prefect-config").arg("-v").arg(variables.path()).envs(server.client_env());
    refused(config, 64, &["S3_REGOIN", "S3_REGION"]).await;
    assert!(client.read_variable("s3_region").await.unwrap().is_none(), "a variable was written");
    server.stop().await.unwrap();
}
