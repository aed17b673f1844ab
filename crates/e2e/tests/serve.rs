//! A flow binary that makes its own deployments, and serves them without a worker, with a real server.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use e2e::programs::Programs;
use e2e::runs;
use prefect_api::flow_run::FlowRun;
use prefect_api::state::{NewState, StateType};
use prefect_api::work_pool::NewWorkPool;
use prefect_client::Client;
use serde_json::json;
use testkit::prefect::{Options, PrefectServer};
use testkit::process::{Command, Signal};

const RUN: Duration = Duration::from_mins(2);

fn probe(server: &PrefectServer) -> Command {
    let program = Programs::find().unwrap().path("ferryman-probe").unwrap();
    Command::new(program).envs(server.client_env()).env("HOME", "/nonexistent")
}

async fn until_in_its_task(client: &Client, run: &FlowRun) {
    let filter = json!({"flow_runs": {"id": {"any_": [run.id]}}});
    let running = async {
        while client.filter_task_runs(&filter).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(RUN, running).await.unwrap();
}

async fn ended(client: &Client, run: &FlowRun, state: StateType) -> FlowRun {
    let ended = runs::wait(client, run.id, RUN, |_| {}).await.unwrap();
    assert_eq!(ended.state_type, Some(state), "{}", runs::explain(client, &ended).await);
    ended
}

/// The process that executes a run.
fn process_of(run: &FlowRun) -> i32 {
    let id = run.id.to_string();
    let found = std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&format!("execute\0{id}")).then_some(pid)
    });
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn served_runs_complete_are_cancelled_and_crash() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let files = tempfile::tempdir().unwrap();
    let serve = ["serve", "probe", "--name", "main", "--tag", "served", "--cron", "0 0 1 1 *"];
    let command = probe(&server).args(serve).log_to(files.path().join("serve.log"));
    let mut serving = command.spawn().unwrap();
    serving.wait_for_log("serving 'probe/main'", RUN).await.unwrap();

    let trigger = async |linger: bool| {
        runs::trigger(&client, "probe", "main", json!({"linger": linger})).await.unwrap()
    };
    let completed = ended(&client, &trigger(false).await, StateType::Completed).await;
    assert_eq!(completed.tags, ["served"]);
    let cancelled = trigger(true).await;
    until_in_its_task(&client, &cancelled).await;
    let cancelling = NewState::new(StateType::Cancelling);
    client.set_flow_run_state(cancelled.id, &cancelling, false).await.unwrap();
    ended(&client, &cancelled, StateType::Cancelled).await;

    let killed = trigger(true).await;
    until_in_its_task(&client, &killed).await;
    let kill = Command::new("kill").args(["-9", &process_of(&killed).to_string()]).output(RUN).await;
    kill.unwrap().success().unwrap();
    let crashed = ended(&client, &killed, StateType::Crashed).await;
    let message = crashed.state.unwrap().message.unwrap();
    assert!(message.contains("signal 9"), "{message}");

    let last = trigger(true).await;
    until_in_its_task(&client, &last).await;
    serving.signal(Signal::Terminate).unwrap();
    let status = serving.wait(RUN).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", serving.log());
    ended(&client, &last, StateType::Crashed).await;
    let deployment = client.read_deployment_by_name("probe", "main").await.unwrap().unwrap();
    assert!(deployment.paused, "the schedule goes on without anybody to run it");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_made_as_it_was_told() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let deploy = ["deploy", "probe", "--pool", "pool", "--name", "nightly", "--image", "probe:1"];
    let refused = probe(&server).args(deploy).output(RUN).await.unwrap();
    assert_eq!(refused.status.code(), Some(64), "{}", refused.stderr);
    assert!(refused.stderr.contains("'pool'") && refused.stderr.contains("hint"), "{}", refused.stderr);

    let pool = NewWorkPool {
        name: "pool".to_owned(),
        kind: "docker".to_owned(),
        base_job_template: None,
        description: None,
        concurrency_limit: None,
        is_paused: false,
    };
    client.create_work_pool(&pool).await.unwrap();
    let more =
        ["--param", "linger=true", "--job-variable", "auto_remove=true", "--interval", "3600", "--paused"];
    let unknown = probe(&server).args(deploy).args(["--param", "lingre=true"]).output(RUN).await.unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("`lingre`") && unknown.stderr.contains("`linger`"), "{}", unknown.stderr);
    // Twice: the second changes the first.
    for limit in ["2", "3"] {
        let made = probe(&server).args(deploy).args(more).args(["--concurrency-limit", limit]);
        let made = made.output(RUN).await.unwrap().success().unwrap();
        assert!(made.stdout.starts_with("probe/nightly\t"), "{}", made.stdout);
    }
    let deployment = client.read_deployment_by_name("probe", "nightly").await.unwrap().unwrap();
    assert_eq!(deployment.work_pool_name.as_deref(), Some("pool"));
    assert_eq!(json!(deployment.parameters), json!({"linger": true}));
    assert_eq!(json!(deployment.job_variables), json!({"auto_remove": true, "image": "probe:1"}));
    assert_eq!(deployment.schedules[0]["schedule"]["interval"], json!(3600.0));
    assert_eq!(deployment.global_concurrency_limit.map(|limit| limit.limit), Some(3));
    assert!(deployment.paused && deployment.enforce_parameter_schema);
    assert!(deployment.parameter_openapi_schema.unwrap()["properties"]["linger"].is_object());
    server.stop().await.unwrap();
}
