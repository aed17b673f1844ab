//! The real proxies and the real database: they start, do what they are told to, and leave nothing behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::{IpAddr, Ipv4Addr};

use axum::Router;
use testkit::postgres::Postgres;
use testkit::proxy::{Forward, Options, Reverse, WebSockets};
use testkit::server::Server;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn upstream() -> Server {
    let echo = |uri: axum::http::Uri| async move { uri.path().to_owned() };
    Server::start(LOOPBACK, 0, Router::new().fallback(echo)).await.unwrap()
}

#[tokio::test]
async fn nginx_hides_a_server_below_a_prefix_with_a_certificate_of_its_own_authority() {
    let server = upstream().await;
    let proxy = Reverse::start(Options {
        host: LOOPBACK,
        upstream: server.url(),
        prefix: "/some/prefix".to_owned(),
        tls: true,
        demand: Some(("x-facility".to_owned(), "secret".to_owned())),
        websockets: WebSockets::Refuse(403),
    })
    .await
    .unwrap();
    let authority = std::fs::read(proxy.authority().unwrap()).unwrap();
    let trusting = reqwest::Client::builder()
        .add_root_certificate(reqwest::Certificate::from_pem(&authority).unwrap())
        .no_proxy()
        .build()
        .unwrap();
    let url = format!("{}/health", proxy.api_url());
    let strict = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(strict.get(&url).send().await.is_err(), "nobody else trusts this authority");
    assert_eq!(trusting.get(&url).send().await.unwrap().status(), 401);
    let known = trusting.get(&url).header("x-facility", "secret");
    let reply = known.try_clone().unwrap().send().await.unwrap();
    assert_eq!(reply.text().await.unwrap(), "/api/health");
    let upgrade = known.header("connection", "upgrade").header("upgrade", "websocket");
    assert_eq!(upgrade.send().await.unwrap().status(), 403);
    assert_eq!(
        proxy.log().last().map(String::as_str),
        Some("GET /some/prefix/api/health 403 websocket"),
        "{:?}",
        proxy.log()
    );
    proxy.stop().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn tinyproxy_wants_its_password() {
    let server = upstream().await;
    let proxy = Forward::start(LOOPBACK).await.unwrap();
    let through =
        |url: &str| reqwest::Client::builder().proxy(reqwest::Proxy::all(url).unwrap()).build().unwrap();
    let url = format!("{}/path", server.url());
    let reply = through(&proxy.url()).get(&url).send().await.unwrap();
    assert_eq!(reply.text().await.unwrap(), "/path");
    let anonymous = through(&proxy.url().replace("user:word@", ""));
    assert_eq!(anonymous.get(&url).send().await.unwrap().status(), 407);
    proxy.stop().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_database_server_takes_connections_and_ends() {
    let database = Postgres::start().await.unwrap();
    let (_, port) = database.address().rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let port: u16 = port.split('/').next().unwrap().parse().unwrap();
    assert!(tokio::net::TcpStream::connect((LOOPBACK, port)).await.is_ok());
    database.stop().await.unwrap();
    assert!(tokio::net::TcpStream::connect((LOOPBACK, port)).await.is_err());
}
