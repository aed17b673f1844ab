//! The stand-alone servers: they say where they listen, end on SIGTERM, and name what is missing.

use std::time::Duration;

use testkit::process::Command;

const SOON: Duration = Duration::from_secs(20);
const S3: &str = env!("CARGO_BIN_EXE_ferryman-s3");
const SCICAT: &str = env!("CARGO_BIN_EXE_ferryman-scicat");

#[tokio::test]
async fn the_s3_server_takes_its_keys_from_files_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "s3cret\n").unwrap();
    let mut server = Command::new(S3)
        .args(["--data", "data", "--bucket", "dev.archival"])
        .env("S3_ACCESS_KEY", "key")
        .env("S3_SECRET_KEY_FILE", dir.path().join("secret"))
        .current_dir(dir.path())
        .log_to(dir.path().join("log"))
        .spawn()
        .unwrap();
    server.wait_for_log("listening on http://127.0.0.1:", SOON).await.unwrap();
    let url =
        server.log().lines().find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
    assert_eq!(reqwest::get(format!("{url}/dev.archival")).await.unwrap().status(), 403);
    assert!(dir.path().join("data/buckets/dev.archival").is_dir());
    assert!(server.stop(SOON).await.unwrap().success());
}

#[tokio::test]
async fn the_catalogue_takes_its_account_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Command::new(SCICAT)
        .env("SCICAT_USER", "somebody")
        .env("SCICAT_PASSWORD", "pass")
        .log_to(dir.path().join("log"))
        .spawn()
        .unwrap();
    server.wait_for_log("listening on http://127.0.0.1:", SOON).await.unwrap();
    let url =
        server.log().lines().find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
    let login = reqwest::Client::new().post(format!("{url}/api/v3/auth/login"));
    let login = login.form(&[("username", "somebody"), ("password", "pass")]).send().await.unwrap();
    assert_eq!(login.status(), 201);
    assert!(server.stop(SOON).await.unwrap().success());
}

#[tokio::test]
async fn a_missing_key_is_an_error_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        Command::new(S3).args(["--data", "data"]).env("S3_ACCESS_KEY", "key").current_dir(dir.path());
    let output = server.output(SOON).await.unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stderr.contains("S3_SECRET_KEY is not set"), "{}", output.stderr);
    assert!(!dir.path().join("data").exists());
}
