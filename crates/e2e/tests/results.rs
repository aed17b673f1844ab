//! Results that one language keeps and the other reads.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use e2e::programs::Programs;
use e2e::runs;
use prefect_client::Client;
use serde_json::json;
use testkit::prefect::{Options, PrefectServer};
use testkit::process::Command;
use testkit::s3::{self, S3Server};

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

/// Makes the block of a bucket.
const BLOCK: &str = r#"
import os
from prefect_aws import MinIOCredentials, S3Bucket
from prefect_aws.client_parameters import AwsClientParameters

S3Bucket(
    bucket_name="results",
    bucket_folder="of/flows",
    credentials=MinIOCredentials(
        minio_root_user=os.environ["KEY"],
        minio_root_password=os.environ["SECRET"],
        aws_client_parameters=AwsClientParameters(endpoint_url=os.environ["ENDPOINT"]),
    ),
).save("bucket")
"#;

/// Where both languages keep their results.
type Storage<'a> = [(&'a str, &'a str)];

async fn ours(server: &PrefectServer, storage: &Storage<'_>, flow: &str, parameters: &[String]) -> String {
    let program = Programs::find().unwrap().path("ferryman-scenarios").unwrap();
    let run = Command::new(program).args(["run", flow]).args(parameters).envs(server.client_env());
    run.envs(storage.iter().copied()).output(DEADLINE).await.unwrap().success().unwrap().stderr
}

async fn python(server: &PrefectServer, storage: &Storage<'_>, code: &str) -> String {
    let program = Command::new(server.venv().python()).args(["-c", code]).envs(server.client_env());
    program.envs(storage.iter().copied()).output(DEADLINE).await.unwrap().success().unwrap().stdout
}

/// Ours keeps and Python reads, then the other way round.
async fn exchange(server: &PrefectServer, client: &Client, storage: &Storage<'_>) {
    ours(server, storage, "persisted-results", &[]).await;
    let read = python(server, storage, READ).await;
    assert_eq!(read.trim(), r#"[{"size": 3}, {"size": 3}]"#, "of the flow and of its task");

    python(server, storage, WRITE).await;
    let written = last_run(client).await;
    ours(server, storage, "read-results", &["--param".to_owned(), format!("run={written}")]).await;
    let lines = runs::logs(client, last_run(client).await.parse().unwrap()).await.unwrap();
    assert!(lines.contains(&"the flow gave 5, the task 41".to_owned()), "{lines:?}");
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

    let path = storage.path().to_str().unwrap();
    exchange(&server, &client, &[("PREFECT_LOCAL_STORAGE_PATH", path)]).await;
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_in_buckets_are_read_by_the_other_language() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let client = runs::client(&server.api_url(), &server.client_env()).unwrap();
    let buckets = vec!["results".to_owned()];
    let s3 = S3Server::start(s3::Options { buckets, ..s3::Options::default() }).await.unwrap();
    let packages = server.venv().package("prefect-aws==0.7.11").await.unwrap();
    let python_path = ("PYTHONPATH", packages.to_str().unwrap());
    let endpoint = s3.endpoint();
    let keys = [("KEY", s3.access_key()), ("SECRET", s3.secret_key()), ("ENDPOINT", &endpoint), python_path];
    python(&server, &keys, BLOCK).await;

    let block = ("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "s3-bucket/bucket");
    exchange(&server, &client, &[block, python_path]).await;
    // Of each language a flow's result and a task's.
    assert_eq!(s3.store().objects("results", "of/flows/").unwrap().len(), 4);
    assert_eq!(s3.store().objects("results", "").unwrap().len(), 4);
    server.stop().await.unwrap();
    s3.stop().await;
}
