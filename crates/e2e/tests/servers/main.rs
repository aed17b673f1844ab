//! Prefect servers of several releases and databases, and proxies before them: worker, container and runtime do
//! all of their work with each. The reference on `SQLite` is the one behind the proxies.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod operations;
mod proxies;
mod site;

use serde_json::json;
use site::{Ground, Site};
use testkit::prefect::{Database, Options, PrefectServer, Release};

async fn serves(stem: &str, release: Release, database: Database) {
    let ground = Ground::prepare(stem).await.unwrap();
    let options = Options { host: ground.host, release, database, ..Options::default() };
    let server = PrefectServer::start(options).await.unwrap();
    let env = server.client_env();
    let site = Site::open(ground, &env, &env, json!({})).await.unwrap();
    assert_eq!(site.prefect.server_version().await.unwrap(), release.number());
    site.run_everything().await.unwrap();
    // The channel came with 3.7; older servers are served over REST.
    let without_channel = site.worker_log().contains("no worker channel, using REST");
    assert_eq!(without_channel, release == Release::Oldest, "{}", site.worker_log());
    site.close().await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_on_sqlite() {
    serves("oldest-sqlite", Release::Oldest, Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_on_postgresql() {
    serves("oldest-postgres", Release::Oldest, Database::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_server_on_postgresql() {
    serves("reference-postgres", Release::Reference, Database::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_server_on_sqlite() {
    serves("newest-sqlite", Release::Newest, Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_server_on_postgresql() {
    serves("newest-postgres", Release::Newest, Database::Postgres).await;
}
