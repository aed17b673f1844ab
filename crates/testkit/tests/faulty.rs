//! The faulty proxy between a client and a server.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::{get, post};
use reqwest::{Client, StatusCode};
use testkit::faults::Fault;
use testkit::proxy::FaultyProxy;
use testkit::server::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server that counts what is posted, and the proxy before it.
struct Bench {
    posted: Arc<AtomicUsize>,
    proxy: FaultyProxy,
    client: Client,
    _server: Server,
}

impl Bench {
    async fn new() -> Self {
        let posted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&posted);
        let router = Router::new()
            .route("/api/health", get(async || "fine"))
            .route(
                "/api/logs/",
                post(async move |body: String| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    body
                }),
            )
            .route("/api/never", get(async || std::future::pending::<()>().await));
        let server = Server::start(LOOPBACK, 0, router).await.unwrap();
        let proxy = FaultyProxy::start(server.addr()).await.unwrap();
        Self { posted, proxy, client: Client::builder().no_proxy().build().unwrap(), _server: server }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/api{path}", self.proxy.addr())
    }

    async fn get(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        self.client.get(self.url(path)).send().await
    }

    async fn post(&self, body: &'static str) -> reqwest::Result<String> {
        self.client.post(self.url("/logs/")).body(body).send().await?.text().await
    }

    fn posted(&self) -> usize {
        self.posted.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn what_no_fault_strikes_passes() {
    let bench = Bench::new().await;
    assert_eq!(bench.get("/health").await.unwrap().text().await.unwrap(), "fine");
    assert_eq!(bench.post("a line").await.unwrap(), "a line");
    assert_eq!(bench.get("/nowhere").await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn requests_are_refused_until_the_fault_is_over() {
    let bench = Bench::new().await;
    bench.proxy.faults().add(Fault::on("*").times(u32::MAX).status(503).retry_after(7));
    for _ in 0..3 {
        let answer = bench.get("/health").await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["retry-after"], "7");
    }
    bench.post("a line").await.unwrap();
    assert_eq!(bench.posted(), 0, "the server knows nothing of it");
    bench.proxy.faults().clear();
    bench.post("a line").await.unwrap();
    assert_eq!(bench.posted(), 1);
}

#[tokio::test]
async fn a_lost_answer_is_one_to_a_call_that_took_effect() {
    let bench = Bench::new().await;
    bench.proxy.faults().add(Fault::on("POST").after_effect().drop_connection());
    bench.post("a line").await.unwrap_err();
    assert_eq!(bench.posted(), 1);
    bench.post("a line").await.unwrap();
    assert_eq!(bench.posted(), 2);
}

#[tokio::test]
async fn a_cut_ends_what_is_under_way_and_nothing_else() {
    let bench = Bench::new().await;
    let waiting = bench.get("/never");
    let cut = async {
        // It is under way once the server has answered somebody who came later.
        bench.get("/health").await.unwrap();
        bench.proxy.cut();
    };
    let (ended, ()) = tokio::join!(waiting, cut);
    ended.unwrap_err();
    bench.get("/health").await.unwrap();
}

#[tokio::test]
async fn what_has_fallen_silent_stays_so_until_it_is_cut() {
    let bench = Bench::new().await;
    let mut silent = TcpStream::connect(bench.proxy.addr()).await.unwrap();
    silent.write_all(b"GET /api/health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut silent, "fine").await;
    bench.proxy.fall_silent(true);
    bench.proxy.fall_silent(false);
    let line = b"POST /api/logs/ HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\na line";
    silent.write_all(line).await.unwrap();
    bench.get("/health").await.unwrap();
    bench.proxy.cut();
    let mut answer = Vec::new();
    // Cut with bytes that nobody read, a connection may end with an error.
    silent.read_to_end(&mut answer).await.unwrap_or_default();
    assert_eq!((answer, bench.posted()), (Vec::new(), 0));
}

/// Reads until `text` has come.
async fn read_until(stream: &mut TcpStream, text: &str) {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "ended after {read:?}");
    }
}

#[tokio::test]
async fn sockets_are_refused_too_and_pass_everything_once_they_are_open() {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let proxy = FaultyProxy::start(listener.local_addr().unwrap()).await.unwrap();
    let open = "GET /api/events/in HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(open.as_bytes()).await.unwrap();
    let (mut served, _) = listener.accept().await.unwrap();
    read_until(&mut served, "websocket\r\n\r\n").await;
    proxy.faults().add(Fault::on("*").containing("/events/in").status(503));
    let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
    refused.write_all(open.as_bytes()).await.unwrap();
    read_until(&mut refused, "HTTP/1.1 503").await;
    client.write_all(b"an event").await.unwrap();
    read_until(&mut served, "an event").await;
    served.write_all(b"a pong").await.unwrap();
    read_until(&mut client, "a pong").await;
    proxy.cut();
    client.read_u8().await.unwrap_err();
}
