//! The connection to an engine: TLS, engines that go away, hang and refuse.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail like tests")]

use std::path::PathBuf;

use prefect_api::id::FlowRunId;
use prefect_worker::launcher::{Attempt, DockerLauncher, Job, LaunchError, Launcher as _, Notes, Refusal};
use serde_json::{Map, json};
use tempfile::TempDir;
use testkit::docker::{Engine, Image};
use testkit::proxy::EngineTls;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

struct Silent;

impl Notes for Silent {
    fn note(&self, _: &str) {}
}

/// The socket of the machine's engine.
fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    host.strip_prefix("unix://").expect("these tests need an engine at a socket").into()
}

async fn connect(variables: &[(&str, &str)]) -> Result<DockerLauncher, LaunchError> {
    let variable =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    DockerLauncher::connect(&variable).await
}

/// An image whose files are no programs for this machine, and a job that runs one of them.
async fn job(engine: &Engine, command: &str) -> Job {
    let image = format!("{}:1", engine.name("refused"));
    // The header of a 64-bit ELF file for a machine that nobody has.
    let mut foreign = b"\x7fELF\x02\x01\x01".to_vec();
    foreign.resize(64, 0);
    foreign[16..20].copy_from_slice(&[2, 0, 0xfe, 0xff]);
    let contents = Image::scratch().bytes("/foreign", foreign, 0o755).bytes("/text", "words", 0o644).bytes(
        "/unique",
        image.clone(),
        0o644,
    );
    engine.build_image(&image, contents).await.unwrap();
    let attempt = Attempt::new(FlowRunId::generate(), engine.name("pool"), "worker");
    let mut job = Job::new(attempt, engine.name("run"), command);
    let (label, value) = engine.run_label();
    job.labels.insert(label.to_owned(), value.to_owned());
    job.configuration = Map::from_iter([
        ("image".to_owned(), json!(image)),
        ("image_pull_policy".to_owned(), json!("Never")),
        ("network_mode".to_owned(), json!("none")),
    ]);
    job
}

#[tokio::test]
async fn an_engine_behind_mutual_tls_is_spoken_to_with_a_certificate_only() {
    let tls = EngineTls::start(&socket()).await.unwrap();
    let certificates = tls.certificates().display().to_string();
    let host = tls.host();
    for variables in [
        &[("DOCKER_HOST", host.as_str()), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", &certificates)][..],
        &[("DOCKER_HOST", &host.replace("tcp", "https")), ("DOCKER_CERT_PATH", &certificates)],
    ] {
        let launcher = connect(variables).await.unwrap();
        launcher.check().await.unwrap();
        assert_eq!(launcher.place(), connect(&[]).await.unwrap().place(), "the same engine");
        let engine = Engine::connect().await.unwrap();
        let job = job(&engine, "/text").await;
        launcher.prepare(&job, &Silent).await.unwrap();
        let created = launcher.create(&job).await.unwrap();
        assert_eq!(created.pid, format!("{}:{}", host.replace("tcp", "https"), created.id));
        launcher.discard(&created).await.unwrap();
    }

    let trusting = tempfile::tempdir().unwrap();
    std::fs::copy(tls.certificates().join("ca.pem"), trusting.path().join("ca.pem")).unwrap();
    let nobody = trusting.path().display().to_string();
    let error = connect(&[("DOCKER_HOST", &host), ("DOCKER_CERT_PATH", &nobody)]).await.unwrap_err();
    assert!(error.to_string().contains(&host), "without a certificate of its own: {error}");

    let stranger = tempfile::tempdir().unwrap();
    let empty = stranger.path().display().to_string();
    let error = connect(&[("DOCKER_HOST", &host), ("DOCKER_CERT_PATH", &empty)]).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "an unknown authority: {error}");
    let error = connect(&[("DOCKER_HOST", &host)]).await.unwrap_err();
    assert!(matches!(error, LaunchError::Unreachable { .. }), "without TLS: {error}");
}

/// A socket that passes on to the engine's.
struct Passage {
    directory: TempDir,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Passage {
    fn open() -> Self {
        let mut passage = Self { directory: tempfile::tempdir().unwrap(), task: None };
        passage.reopen(true);
        passage
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("engine.sock")
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    /// Ends all connections and takes new ones, to pass them on or to say nothing.
    fn reopen(&mut self, passing: bool) {
        self.close();
        let listener = UnixListener::bind(self.path()).unwrap();
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    if !passing {
                        std::future::pending::<()>().await;
                    }
                    let mut engine = UnixStream::connect(socket()).await.unwrap();
                    // Either side may leave as it likes.
                    drop(tokio::io::copy_bidirectional(&mut client, &mut engine).await);
                });
            }
        }));
    }

    fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        if self.path().exists() {
            std::fs::remove_file(self.path()).unwrap();
        }
    }
}

#[tokio::test]
async fn an_engine_that_goes_away_and_comes_back_is_found_again() {
    let mut passage = Passage::open();
    let launcher = connect(&[("DOCKER_HOST", &passage.host())]).await.unwrap();
    launcher.check().await.unwrap();
    passage.close();
    assert!(launcher.check().await.unwrap_err().is_transient());
    passage.reopen(true);
    launcher.check().await.unwrap();
}

#[tokio::test]
async fn an_engine_that_hangs_is_told_from_one_that_is_away() {
    let engine = Engine::connect().await.unwrap();
    let mut passage = Passage::open();
    let launcher =
        connect(&[("DOCKER_HOST", &passage.host()), ("DOCKER_CLIENT_TIMEOUT", "1")]).await.unwrap();
    let job = job(&engine, "/text").await;
    let created = launcher.create(&job).await.unwrap();
    passage.reopen(false);
    let error = launcher.start(&created).await.unwrap_err();
    assert!(matches!(error, LaunchError::Deadline { action: "start the container", seconds: 1 }), "{error}");
    passage.close();
    let error = launcher.start(&created).await.unwrap_err();
    assert!(matches!(error, LaunchError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn the_version_of_the_api_can_be_pinned() {
    let old = connect(&[("DOCKER_API_VERSION", "1.38")]).await.unwrap();
    old.check().await.unwrap();
    let error = connect(&[("DOCKER_API_VERSION", "1.999")]).await.unwrap_err();
    assert!(error.to_string().contains("1.999"), "{error}");
}

#[tokio::test]
async fn commands_that_cannot_be_run_are_told_apart() {
    let engine = Engine::connect().await.unwrap();
    let launcher = connect(&[]).await.unwrap();
    for (command, expected, remedy) in [
        ("/no/such/program", Refusal::CommandNotFound, "job variable command"),
        ("nothing", Refusal::CommandNotFound, "job variable command"),
        ("/text", Refusal::CommandNotExecutable, "make it executable"),
    ] {
        let created = launcher.create(&job(&engine, command).await).await.unwrap();
        let error = launcher.start(&created).await.unwrap_err();
        let LaunchError::Refused { refusal, .. } = &error else { unreachable!("{command}: {error}") };
        assert_eq!(*refusal, expected, "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
    }
}

#[tokio::test]
async fn an_image_for_another_machine_is_told() {
    let engine = Engine::connect().await.unwrap();
    let launcher = connect(&[]).await.unwrap();
    let mut job = job(&engine, "/foreign").await;
    let created = launcher.create(&job).await.unwrap();
    let error = match launcher.start(&created).await {
        Err(error) => error.to_string(),
        Ok(()) => format!("{:?} {:?}", launcher.wait(&created, None).await, launcher.tail(&created, 5).await),
    };
    assert!(error.contains("exec format error"), "{error}");

    job.configuration.insert("container_create_kwargs".to_owned(), json!({"platform": "linux/s390x"}));
    let error = launcher.create(&job).await.unwrap_err();
    assert_eq!(error.kind(), "WrongArchitecture", "{error}");
}
