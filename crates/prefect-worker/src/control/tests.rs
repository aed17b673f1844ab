//! Both ends of the socket, in one process.

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::health::Health;
use crate::status::StatusBoard;

struct Bench {
    _dir: tempfile::TempDir,
    path: String,
    stop: CancellationToken,
    requests: mpsc::Receiver<ShutdownRequest>,
    served: JoinHandle<()>,
}

fn in_directory(path: &str) -> impl Fn(&str) -> Option<String> {
    move |name| (name == "PREFECT_WORKER_RUNTIME_DIR").then(|| path.to_owned())
}

async fn start(
    worker: &str,
    path: &str,
) -> (CancellationToken, mpsc::Receiver<ShutdownRequest>, JoinHandle<()>) {
    let inputs = prefect_client::settings::Inputs {
        environment: [("PREFECT_API_URL".to_owned(), "http://127.0.0.1:1/api".to_owned())].into(),
        directory: "/nonexistent".into(),
    };
    let client = prefect_client::Client::new(&prefect_client::Settings::resolve(&inputs).unwrap()).unwrap();
    let status = StatusBoard::new(worker, "http://127.0.0.1:1/api");
    let control = Control::listen(&status, &in_directory(path)).await.unwrap();
    let (sender, requests) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let served =
        tokio::spawn(control.serve(status.clone(), Health::new(status, client), sender, stop.clone()));
    (stop, requests, served)
}

impl Bench {
    async fn new(worker: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").to_str().unwrap().to_owned();
        let (stop, requests, served) = start(worker, &path).await;
        Self { _dir: dir, path, stop, requests, served }
    }

    async fn find(&self, name: Option<&str>) -> Result<Vec<Chosen>, Error> {
        find(name, &in_directory(&self.path)).await
    }

    fn sockets(&self) -> Vec<std::path::PathBuf> {
        super::server::sockets(Path::new(&self.path))
    }
}

#[tokio::test]
async fn a_worker_is_found_by_any_name_and_says_what_it_does() {
    let bench = Bench::new("läßt/../grüßen \"x\"").await;
    let found = Chosen::only(bench.find(Some("läßt/../grüßen \"x\"")).await.unwrap()).unwrap();
    let Reply::Status(status) = found.ask(&Request::Status).await.unwrap() else { panic!("no status") };
    assert_eq!(status.worker, "läßt/../grüßen \"x\"");
    let Reply::Health(report) = found.ask(&Request::Health).await.unwrap() else { panic!("no report") };
    assert!(!report.ok && report.problems().contains("api: failed to reach"), "{report:?}");
    assert!(matches!(bench.find(Some("other")).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_request_to_drain_reaches_the_worker_and_its_end_is_seen() {
    let mut bench = Bench::new("w").await;
    let found = Chosen::only(bench.find(None).await.unwrap()).unwrap();
    let drain = Request::Drain { deadline_seconds: Some(7) };
    let asked = async {
        let request = bench.requests.recv().await.unwrap();
        bench.stop.cancel();
        request
    };
    let ended = async { found.ask_to_end(&drain).await.unwrap().wait(None).await.unwrap() };
    let ((), request) = tokio::join!(ended, asked);
    assert_eq!(
        request,
        ShutdownRequest { mode: ShutdownMode::Drain, deadline: Some(Duration::from_secs(7)) }
    );
    (&mut bench.served).await.unwrap();
    assert!(bench.sockets().is_empty(), "the socket is removed");
}

#[tokio::test]
async fn a_worker_that_stays_is_told_as_such() {
    let bench = Bench::new("w").await;
    let found = Chosen::only(bench.find(None).await.unwrap()).unwrap();
    let ending = found.ask_to_end(&Request::Stop).await.unwrap();
    let error = ending.wait(Some(Duration::from_millis(1))).await.unwrap_err();
    assert!(matches!(error, Error::StillThere { .. }), "{error}");
    assert_eq!(error.exit_code(), 75);
}

#[tokio::test]
async fn several_workers_share_a_directory_and_dead_ones_do_not_disturb() {
    let bench = Bench::new("one").await;
    let stale = Path::new(&bench.path).join("0.sock");
    drop(StdListener::bind(&stale).unwrap());
    assert_eq!(bench.find(None).await.unwrap().len(), 1);
    let (_stop, _requests, _served) = start("two", &bench.path).await;
    assert!(!stale.exists(), "a socket without a worker is removed when another one starts");
    let error = Chosen::only(bench.find(None).await.unwrap()).unwrap_err();
    assert!(error.to_string().contains("\"one\"") && error.to_string().contains("\"two\""), "{error}");
    assert_eq!(Chosen::only(bench.find(Some("two")).await.unwrap()).unwrap().status.worker, "two");
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_bounded() {
    let bench = Bench::new("w").await;
    let socket = bench.sockets().remove(0);
    let mut long = vec![b'x'; 8192];
    long.push(b'\n');
    for (request, part) in [
        (b"hello\n".to_vec(), "this is no request"),
        (b"{\"command\":\"explode\"}\n".to_vec(), "explode"),
        (b"{\"command\":\"drain\",\"deadline_seconds\":-1}\n".to_vec(), "this is no request"),
        (long, "at most 4096 bytes"),
    ] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        // The worker may stop to read a request that is too long.
        drop(stream.write_all(&request).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains(part), "{answer}");
    }
}
