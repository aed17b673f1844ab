//! Results that one language keeps and the other reads.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::time::Duration;

use e2e::programs::Programs;
use e2e::runs;
use prefect_client::Client;
use serde_json::json;
use testkit::prefect::{Options, PrefectServer};
use testkit::process::Command;

const DEADLINE: Duration = Duration::from_mins(2);

/// Reads the results of the last flow run and of its task runs, by their states, as any Python program does.
const READ: &str = r#"
import asyncio, json
from prefect.client.orchestration import get_client

async def main():
    async with get_client() as client:
        run = (await client.read_flow_runs(limit=1, sort="START_TIME_DESC"))[0]
        tasks = await client.read_task_runs()
        states = [run.state] + [task.state for task in tasks if task.flow_run_id == run.id]
        print(json.dumps([await state.aresult() for state in states]))

asyncio.run(main())
"#;

/// A flow that keeps what ours reads: its own result, and that of a task under a key.
const WRITE: &str = r#"
from prefect import flow, task

@task(persist_result=True, result_serializer="json", cache_key_fn=lambda context, parameters: "digest-of-a")
def digest():
    return 41

@flow(name="written", persist_result=True, result_serializer="json")
def written():
    digest()
    return {"size": 5}

written()
"#;

async fn ours(server: &PrefectServer, storage: &Path, flow: &str, parameters: &[String]) {
    let program = Programs::find().unwrap().path("ferryman-scenarios").unwrap();
    let run = Command::new(program)
        .args(["run", flow])
        .args(parameters)
        .envs(server.client_env())
        .env("PREFECT_LOCAL_STORAGE_PATH", storage);
    run.output(DEADLINE).await.unwrap().success().unwrap();
}

async fn python(server: &PrefectServer, storage: &Path, code: &str) -> String {
    let program = Command::new(server.venv().python()).args(["-c", code]).envs(server.client_env());
    let program = program.env("PREFECT_LOCAL_STORAGE_PATH", storage);
    program.output(DEADLINE).await.unwrap().success().unwrap().stdout
}

async fn last_run(client: &Client) -> String {
    let filter = json!({"limit": 1, "sort": "START_TIME_DESC"});
    client.filter_flow_runs(&filter).await.unwrap()[0].id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_read_by_the_other_language() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let storage = tempfile::tempdir().unwrap();

    ours(&server, storage.path(), "persisted-results", &[]).await;
    let read = python(&server, storage.path(), READ).await;
    assert_eq!(read.trim(), r#"[{"size": 3}, {"size": 3}]"#, "of the flow and of its task");

    python(&server, storage.path(), WRITE).await;
    let written = last_run(&client).await;
    let parameters = ["--param".to_owned(), format!("run={written}")];
    ours(&server, storage.path(), "read-results", &parameters).await;
    let lines = runs::logs(&client, last_run(&client).await.parse().unwrap()).await.unwrap();
    assert!(lines.contains(&"the flow gave 5, the task 41".to_owned()), "{lines:?}");
    server.stop().await.unwrap();
}
