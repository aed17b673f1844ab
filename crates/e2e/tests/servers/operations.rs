//! What operators see and do: probes, metrics, status and drain of a worker at work.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::programs::Programs;
use prefect_api::state::StateType;
use serde_json::{Value, json};
use testkit::prefect::{Options, PrefectServer};
use testkit::process::{Command, Output};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::site::{Ground, Site};

const DEADLINE: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(200);

/// The worker as its operator has it before him.
struct Desk<'a> {
    port: u16,
    sockets: &'a Path,
}

impl Desk<'_> {
    /// Status and body of an answer of the health server.
    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: worker\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Waits until a path answers like this; gives the body.
    async fn until(&self, path: &str, status: u16, part: &str) -> Result<String> {
        let mut last = String::new();
        let asking = async {
            loop {
                let (found, body) = self.get(path).await?;
                if found == status && body.contains(part) {
                    return anyhow::Ok(body);
                }
                last = format!("{found} {body}");
                tokio::time::sleep(POLL).await;
            }
        };
        let answer = tokio::time::timeout(DEADLINE, asking).await;
        answer.with_context(|| format!("{path} never said {status} {part:?} but {last}"))?
    }

    /// Waits until calls of the API that failed in this way are counted.
    async fn until_counted(&self, kind: &str) -> Result<()> {
        let counted = async {
            loop {
                let (_, metrics) = self.get("/metrics").await?;
                let mut lines =
                    metrics.lines().filter(|line| line.starts_with("prefect_worker_api_errors_total"));
                let is_counted =
                    |line: &str| line.contains(&format!("kind=\"{kind}\"")) && !line.ends_with(" 0");
                if lines.any(is_counted) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(DEADLINE, counted).await.context("the outage is in no figure")?
    }

    /// A command line of the worker's program, for the worker at this desk.
    async fn says(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(Programs::find()?.path("prefect-worker")?)
            .args(arguments.iter().copied())
            .env("PREFECT_WORKER_RUNTIME_DIR", self.sockets)
            .output(DEADLINE)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_the_worker_does_and_lets_it_end() {
    let ground = Ground::prepare("operations").await.unwrap();
    let options = Options { host: ground.host, ..Options::default() };
    let mut server = PrefectServer::start(options).await.unwrap();
    let sockets = tempfile::tempdir().unwrap();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let desk = Desk { port: free.port(), sockets: sockets.path() };
    let mut env = server.client_env();
    let more = [
        // Calls that fail show soon.
        ("PREFECT_CLIENT_MAX_RETRIES", "1".to_owned()),
        ("PREFECT_WORKER_RUNTIME_DIR", sockets.path().display().to_string()),
        ("PREFECT_WORKER_WEBSERVER_HOST", "127.0.0.1".to_owned()),
        ("PREFECT_WORKER_WEBSERVER_PORT", desk.port.to_string()),
    ];
    env.extend(more.map(|(name, value)| (name.to_owned(), value)));
    let direct = server.client_env();
    let mut site = Site::open_with(&["--with-healthcheck"], ground, &env, &direct, json!({})).await.unwrap();
    let outcome = operate(&desk, &mut site, &mut server).await;
    let log = site.worker_log();
    site.close().await.unwrap();
    server.stop().await.unwrap();
    outcome.with_context(|| format!("the worker says:\n{log}")).unwrap();
}

async fn operate(desk: &Desk<'_>, site: &mut Site, server: &mut PrefectServer) -> Result<()> {
    desk.until("/readyz", 200, "").await?;
    let well = desk.says(&["healthcheck"]).await?;
    ensure!(well.status.code() == Some(0), "{}{}", well.stdout, well.stderr);

    let completed = site.trigger(false).await?;
    site.ended(&completed, StateType::Completed).await?;
    let ends = |cause: &str, count: u32| format!("pool=\"pool\",cause=\"{cause}\"}} {count}\n");
    let metrics = desk.until("/metrics", 200, &ends("exited", 1)).await?;
    for part in ["outcome=\"accepted\"} 1\n", "server_version=\"3.7.2\"", "prefect_worker_api_errors_total"] {
        ensure!(metrics.contains(part), "{part} is not in\n{metrics}");
    }
    ensure!(!metrics.contains("engine_version=\"\""), "the engine's version is not known:\n{metrics}");

    server.kill().await?;
    let ill = desk.until("/readyz", 503, "\"api\"").await?;
    ensure!(ill.contains("\"ok\":false"), "{ill}");
    ensure!(desk.get("/livez").await?.0 == 200, "an outage of the API is no reason for a restart");
    let ill = desk.says(&["healthcheck"]).await?;
    ensure!(ill.status.code() == Some(1) && ill.stdout.contains("api"), "{}{}", ill.stdout, ill.stderr);
    desk.until_counted("connection").await?;
    server.restart().await?;
    desk.until("/readyz", 200, "").await?;

    let waiting = site.trigger(true).await?;
    site.until_waiting(&waiting).await?;
    let status = desk.says(&["status", "--json"]).await?.success()?;
    let status: Value = serde_json::from_str(&status.stdout)?;
    let run = &status["pools"][0]["runs"][0];
    ensure!(run["id"] == json!(waiting.id) && run["phase"] == "running", "{status}");
    ensure!(status["server_version"] == "3.7.2" && status["engine"]["version"].is_string(), "{status}");

    desk.says(&["drain"]).await?.success()?;
    desk.until("/readyz", 503, "draining").await?;
    let well = desk.says(&["healthcheck"]).await?;
    ensure!(well.status.code() == Some(0), "a worker that drains is well: {}{}", well.stdout, well.stderr);
    ensure!(site.worker().is_running(), "it left its run");
    site.cancel(&waiting).await?;
    let ended = site.worker().wait(DEADLINE).await?;
    ensure!(ended.code() == Some(0), "the worker ended with {ended}");
    let none = desk.says(&["healthcheck"]).await?;
    ensure!(none.status.code() == Some(69), "{}{}", none.stdout, none.stderr);
    Ok(())
}
