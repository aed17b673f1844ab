//! The real Prefect server: it starts, answers, demands what it is told to, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use testkit::prefect::{Options, PrefectServer, VERSION};

const DEADLINE: Duration = Duration::from_mins(2);

/// Numbers of the living processes of a process group.
fn group(leader: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[0] != "Z" && fields[2] == leader.to_string()
        })
        .collect()
}

#[tokio::test]
async fn a_server_starts_answers_and_leaves_nothing_behind() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let version = reqwest::get(format!("{}/admin/version", server.api_url())).await.unwrap();
    assert_eq!(version.json::<String>().await.unwrap(), VERSION);
    let page = reqwest::get(server.ui_url()).await.unwrap().text().await.unwrap();
    assert!(page.contains("<html"), "{page}");
    let limits =
        server.prefect(&["work-pool", "create", "--type", "docker", "pool"], DEADLINE).await.unwrap();
    limits.success().unwrap();
    let code = "import sys; from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client: print(client.read_work_pool(sys.argv[1]).type)";
    let output = server.python(code, &["pool"], DEADLINE).await.unwrap().success().unwrap();
    assert_eq!(output.stdout.trim(), "docker");

    let (pid, home, url) = (server.pid(), server.log_path().parent().unwrap().to_owned(), server.api_url());
    assert!(!group(pid).is_empty() && home.is_dir());
    server.stop().await.unwrap();
    assert!(reqwest::get(format!("{url}/health")).await.is_err());
    assert!(!home.exists());
    tokio::time::timeout(DEADLINE, async {
        while !group(pid).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("no process should be left");
}

#[tokio::test]
async fn a_server_demands_its_auth_string() {
    let options = Options { auth: Some("admin:secret".into()), csrf: true, ..Options::default() };
    let server = PrefectServer::start(options).await.unwrap();
    let anonymous = reqwest::get(format!("{}/work_pools/none", server.api_url())).await.unwrap();
    assert_eq!(anonymous.status(), 401);
    let known =
        server.prefect(&["work-pool", "create", "--type", "process", "pool"], DEADLINE).await.unwrap();
    known.success().unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let options = Options {
        env: vec![("PREFECT_API_DATABASE_CONNECTION_URL".to_owned(), "nonsense".to_owned())],
        ..Options::default()
    };
    let error = PrefectServer::start(options).await.unwrap_err().to_string();
    assert!(error.contains("ended while starting") && error.contains("SQLAlchemy URL"), "{error}");
}

#[tokio::test]
async fn a_killed_server_comes_back_with_its_records() {
    let mut server = PrefectServer::start(Options::default()).await.unwrap();
    let url = server.api_url();
    let pool = ["work-pool", "create", "--type", "process", "kept"];
    server.prefect(&pool, DEADLINE).await.unwrap().success().unwrap();
    server.kill().await.unwrap();
    assert!(reqwest::get(format!("{url}/health")).await.is_err());
    server.restart().await.unwrap();
    assert_eq!(server.api_url(), url);
    let pool = reqwest::get(format!("{url}/work_pools/kept")).await.unwrap();
    assert!(pool.status().is_success(), "{pool:?}");
}
