//! Pulls by the Docker launcher, from a real registry through the real engine.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::query_parameters::TagImageOptionsBuilder;
use prefect_api::id::FlowRunId;
use prefect_worker::launcher::{Attempt, DockerLauncher, Job, LaunchError, Launcher as _, Notes};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::docker::{Engine, Image};
use testkit::faults::Fault;
use testkit::registry::{PASSWORD, Registry, USER};
use tokio::sync::Notify;

/// Far more than anything here takes, so that a fault ends in a failure.
const DEADLINE: Duration = Duration::from_mins(1);
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_hours(1);

/// Lines for the log of a run.
#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<String>>,
    added: Notify,
}

impl Notes for Lines {
    fn note(&self, line: &str) {
        self.lines.lock().unwrap().push(line.to_owned());
        self.added.notify_waiters();
    }
}

impl Lines {
    fn count(&self, part: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    fn all(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    async fn wait_for(&self, part: &str) {
        let seen = async {
            loop {
                let added = self.added.notified();
                if self.count(part) > 0 {
                    return;
                }
                added.await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, seen).await;
        waited.unwrap_or_else(|_| panic!("no line {part:?} in\n{}", self.all()));
    }
}

struct Bench {
    engine: Engine,
    registry: Registry,
    /// A home with a `.docker` that is the test's own, and helpers.
    home: TempDir,
}

impl Bench {
    async fn new(registry: Registry) -> Self {
        let engine = Engine::connect().await.expect("these tests need a Docker engine");
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        Self { engine, registry, home }
    }

    async fn open() -> Self {
        Self::new(Registry::start().await.unwrap()).await
    }

    async fn closed() -> Self {
        Self::new(Registry::start_closed().await.unwrap()).await
    }

    /// A launcher with this environment beside the machine's `DOCKER_HOST`.
    async fn launcher(&self, variables: &[(&str, &str)]) -> DockerLauncher {
        let mut environment: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let home = self.home.path().display().to_string();
        environment.insert("PATH".to_owned(), format!("{home}:/usr/bin:/bin"));
        environment.insert("HOME".to_owned(), home);
        environment.extend(std::env::var("DOCKER_HOST").ok().map(|host| ("DOCKER_HOST".to_owned(), host)));
        DockerLauncher::connect(&|name| environment.get(name).cloned()).await.unwrap()
    }

    /// Pushes an image of about two megabytes that no other test has; the engine does not keep it.
    async fn image(&self, name: &str) -> String {
        let reference = self.push(name).await;
        self.engine.remove_image(&reference).await.unwrap();
        self.registry.forget_calls();
        reference
    }

    async fn push(&self, name: &str) -> String {
        let local = format!("{}:{}", self.engine.name("pulled"), uuid::Uuid::new_v4().simple());
        let noise: Vec<u8> = (0..131_072).flat_map(|_| uuid::Uuid::new_v4().into_bytes()).collect();
        self.engine.build_image(&local, Image::scratch().bytes("/noise", noise, 0o644)).await.unwrap();
        let reference = self.registry.push(&self.engine, &local, name).await.unwrap();
        self.engine.remove_image(&local).await.unwrap();
        reference
    }

    fn job(&self, image: &str, policy: &str, configuration: Value) -> Job {
        let attempt = Attempt::new(FlowRunId::generate(), self.engine.name("pool"), "worker");
        let mut job = Job::new(attempt, self.engine.name("run"), "/none");
        let (label, value) = self.engine.run_label();
        job.labels.insert(label.to_owned(), value.to_owned());
        job.configuration = Map::from_iter([
            ("image".to_owned(), json!(image)),
            ("image_pull_policy".to_owned(), json!(policy)),
        ]);
        if let Value::Object(configuration) = configuration {
            job.configuration.extend(configuration);
        }
        job
    }

    fn docker_config(&self, config: &Value) {
        std::fs::write(self.home.path().join(".docker/config.json"), config.to_string()).unwrap();
    }

    fn helper(&self, name: &str, script: &str) {
        let program = self.home.path().join(format!("docker-credential-{name}"));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn has(&self, image: &str) -> bool {
        self.engine.image_id(image).await.unwrap().is_some()
    }

    /// Lets the transfer of an image's layers come to a halt half way. The engine gives up a layer that nobody
    /// wants any more; other requests it does not end.
    async fn stall_layers(&self, image: &str, times: u32) {
        for layer in self.registry.layers(image).await.unwrap() {
            let stall = Fault::on("GET").containing(layer).after_effect().delay(FOR_EVER);
            self.registry.faults().add(stall.times(times));
        }
    }

    fn manifest_requests(&self) -> usize {
        self.registry.calls().iter().filter(|call| call.path.contains("/manifests/")).count()
    }
}

async fn prepare(launcher: &DockerLauncher, job: &Job) -> (Result<(), LaunchError>, String) {
    let lines = Lines::default();
    let prepared = tokio::time::timeout(DEADLINE, launcher.prepare(job, &lines)).await;
    (prepared.expect("the pull did not end"), lines.all())
}

/// Prepares a job in the background.
fn spawn(
    launcher: &Arc<DockerLauncher>,
    job: Job,
) -> (tokio::task::JoinHandle<Result<(), LaunchError>>, Arc<Lines>) {
    let (launcher, lines) = (Arc::clone(launcher), Arc::new(Lines::default()));
    let notes = Arc::clone(&lines);
    (tokio::spawn(async move { launcher.prepare(&job, notes.as_ref()).await }), lines)
}

#[tokio::test]
async fn a_pull_tells_its_course_and_the_container_bears_the_digest() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.image("told:1").await;
    let job = bench.job(&image, "IfNotPresent", json!({}));
    let (prepared, lines) = prepare(&launcher, &job).await;
    prepared.unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[0], format!("Pulling image {image}"));
    let last = lines.last().unwrap();
    assert!(last.starts_with(&format!("Pulled image {image} in ")), "{last}");
    let digest = last.rsplit_once(": ").unwrap().1;
    assert!(digest.starts_with("sha256:"), "{last}");

    let infrastructure = launcher.create(&job).await.unwrap();
    let labels = bench.engine.inspect(&infrastructure.id).await.unwrap().config.unwrap().labels.unwrap();
    assert_eq!(labels["io.ferryman.image-digest"], digest);
    launcher.discard(&infrastructure).await.unwrap();

    bench.registry.forget_calls();
    let (prepared, lines) = prepare(&launcher, &job).await;
    prepared.unwrap();
    assert_eq!(lines, format!("Image {image} is {digest}"));
    assert_eq!(bench.registry.calls(), [], "what is there is not pulled");

    let (prepared, lines) = prepare(&launcher, &bench.job(&image, "Always", json!({}))).await;
    prepared.unwrap();
    assert!(lines.ends_with(&format!("Image {image} is up to date: {digest}")), "{lines}");
    assert_eq!(bench.registry.transfers(), 0);
}

#[tokio::test]
async fn a_moved_tag_is_followed_with_always_only() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.push("moved:1").await;
    let old = bench.engine.image_id(&image).await.unwrap().unwrap();
    let new = bench.push("moved:1").await;
    assert_eq!(new, image);
    let new = bench.engine.image_id(&image).await.unwrap().unwrap();
    let (repository, tag) = image.rsplit_once(':').unwrap();
    let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
    bench.engine.api().tag_image(&old, Some(options)).await.unwrap();

    prepare(&launcher, &bench.job(&image, "IfNotPresent", json!({}))).await.0.unwrap();
    assert_eq!(bench.engine.image_id(&image).await.unwrap().unwrap(), old);
    prepare(&launcher, &bench.job(&image, "Always", json!({}))).await.0.unwrap();
    assert_eq!(bench.engine.image_id(&image).await.unwrap().unwrap(), new);
}

#[tokio::test]
async fn equal_pulls_at_a_time_are_one() {
    let bench = Bench::open().await;
    let launcher = Arc::new(bench.launcher(&[]).await);
    let image = bench.image("shared:1").await;
    // Until the others have come.
    bench.registry.faults().add(Fault::on("*").containing("/manifests/").delay(Duration::from_secs(1)));
    let jobs = (0..5).map(|_| bench.job(&image, "Always", json!({})));
    let pulls: Vec<_> = jobs.map(|job| spawn(&launcher, job)).collect();
    let mut joined = 0;
    for (pull, lines) in pulls {
        pull.await.unwrap().unwrap();
        assert_eq!(lines.count("Pulled image "), 1, "{}", lines.all());
        joined += lines.count("waiting for a pull of it that is under way");
    }
    assert_eq!(joined, 4);
    assert!(bench.manifest_requests() <= 2, "{:?}", bench.registry.calls());
    assert_eq!(bench.registry.transfers(), 2, "configuration and layer, once each");
}

#[tokio::test]
async fn who_leaves_does_not_end_the_pull_of_others_but_the_last_does() {
    let bench = Bench::open().await;
    let launcher = Arc::new(bench.launcher(&[("PREFECT_WORKER_PULL_SILENCE_SECONDS", "2")]).await);
    let image = bench.image("left:1").await;
    bench.stall_layers(&image, u32::MAX).await;
    let (first, first_lines) = spawn(&launcher, bench.job(&image, "Always", json!({})));
    first_lines.wait_for("Pulling image").await;
    let (second, second_lines) = spawn(&launcher, bench.job(&image, "Always", json!({})));
    second_lines.wait_for("under way").await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    // Only now: however slow this machine is, the second has seen the first one's pull stall.
    second_lines.wait_for("no progress for 2 s").await;
    bench.registry.faults().clear();
    second.await.unwrap().unwrap();
    assert_eq!(second_lines.count("Pulled image"), 1, "{}", second_lines.all());

    let bench = Bench::open().await;
    let image = bench.image("left:2").await;
    bench.stall_layers(&image, u32::MAX).await;
    let launcher = Arc::new(bench.launcher(&[]).await);
    let (last, _) = spawn(&launcher, bench.job(&image, "Always", json!({})));
    bench.registry.wait_for_open_answers(1, DEADLINE).await.unwrap();
    last.abort();
    bench.registry.wait_for_open_answers(0, DEADLINE).await.expect("the engine went on pulling");
    assert!(!bench.has(&image).await);
}

#[tokio::test]
async fn a_registry_that_stumbles_is_asked_again() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.image("stumbling:1").await;
    let manifests = || Fault::on("*").containing("/manifests/").times(2);
    bench.registry.faults().add(manifests().error("TOOMANYREQUESTS", 429));
    bench.registry.faults().add(manifests().error("UNAVAILABLE", 503));
    let (prepared, lines) = prepare(&launcher, &bench.job(&image, "Always", json!({}))).await;
    prepared.unwrap_or_else(|error| panic!("{error}\n{lines}"));
    assert!(lines.contains("attempt 1 of 6 failed, trying again in 1 s: "), "{lines}");
    assert!(bench.has(&image).await);
}

#[tokio::test]
async fn a_transfer_that_dies_half_way_is_done_again() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.image("dying:1").await;
    let death = Fault::on("GET").containing("/blobs/").after_effect().drop_connection();
    bench.registry.faults().add(death.times(2));
    let (prepared, lines) = prepare(&launcher, &bench.job(&image, "IfNotPresent", json!({}))).await;
    prepared.unwrap_or_else(|error| panic!("{error}\n{lines}"));
    assert_eq!(bench.registry.faults().struck(), 2);
    assert!(lines.contains("Pulled image"), "{lines}");
    assert!(bench.has(&image).await);
}

#[tokio::test]
async fn a_pull_ends_at_its_deadline() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.image("late:1").await;
    bench.stall_layers(&image, u32::MAX).await;
    let job = bench.job(&image, "Always", json!({"pull_timeout_seconds": 1}));
    let error = prepare(&launcher, &job).await.0.unwrap_err();
    assert!(matches!(error, LaunchError::Deadline { action: "pull the image", seconds: 1 }), "{error}");
}

#[tokio::test]
async fn credentials_come_from_the_job_the_configuration_or_a_helper() {
    let bench = Bench::closed().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.image("closed/own:1").await;
    let host = bench.registry.host();
    let job = |configuration| bench.job(&image, "Always", configuration);
    let asked_by = || {
        let calls = bench.registry.calls();
        calls.iter().rev().find(|call| call.status == 200).and_then(|call| call.user.clone())
    };

    let (refused, lines) = prepare(&launcher, &job(json!({}))).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, LaunchError::Image { .. }), "{refused}");
    assert!(!lines.contains("trying again"), "a refusal is final: {lines}");
    assert_eq!(asked_by(), None);

    let own = json!({"username": USER, "password": PASSWORD, "registry_url": format!("http://{host}")});
    let (prepared, lines) = prepare(&launcher, &job(json!({"registry_credentials": own}))).await;
    prepared.unwrap_or_else(|error| panic!("{error}\n{lines}"));
    assert_eq!(asked_by().as_deref(), Some(USER));
    assert!(!lines.contains(PASSWORD), "{lines}");

    bench.registry.forget_calls();
    let auth = base64(&format!("{USER}:{PASSWORD}"));
    bench.docker_config(&json!({"auths": { &host: {"auth": auth}}}));
    prepare(&launcher, &job(json!({}))).await.0.unwrap();
    assert_eq!(asked_by().as_deref(), Some(USER));

    bench.registry.forget_calls();
    let answer = json!({"ServerURL": host, "Username": USER, "Secret": PASSWORD});
    bench.helper("mine", &format!("read -r server; [ \"$1-$server\" = 'get-{host}' ] && echo '{answer}'"));
    bench.docker_config(&json!({"credHelpers": { &host: "mine"}}));
    let (prepared, lines) = prepare(&launcher, &job(json!({}))).await;
    prepared.unwrap_or_else(|error| panic!("{error}\n{lines}"));
    assert_eq!(asked_by().as_deref(), Some(USER));

    bench.docker_config(&json!({"credsStore": "absent"}));
    let (refused, lines) = prepare(&launcher, &job(json!({}))).await;
    refused.unwrap_err();
    assert!(lines.contains("docker-credential") || lines.contains("helper absent"), "{lines}");
    assert!(lines.contains("pulling without credentials"), "{lines}");
}

#[tokio::test]
async fn credentials_for_one_registry_are_not_sent_to_another() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let image = bench.image("other:1").await;
    let other = json!({"username": "someone", "password": "secret", "registry_url": "registry.example"});
    let job = bench.job(&image, "Always", json!({"registry_credentials": other}));
    let (prepared, lines) = prepare(&launcher, &job).await;
    prepared.unwrap();
    assert!(lines.contains("are for registry.example, not for"), "{lines}");
    assert!(bench.registry.calls().iter().all(|call| call.user.is_none()));
}

#[tokio::test]
async fn without_a_registry_a_local_image_will_do_if_possible() {
    let bench = Bench::open().await;
    let launcher = bench.launcher(&[]).await;
    let local = bench.push("offline:1").await;
    let absent = format!("{}/absent:1", bench.registry.host());
    bench.registry.faults().add(Fault::on("*").times(u32::MAX).drop_connection());
    let (prepared, lines) = prepare(&launcher, &bench.job(&local, "IfPossible", json!({}))).await;
    prepared.unwrap_or_else(|error| panic!("{error}\n{lines}"));
    assert!(lines.contains("using the image that is here") && !lines.contains("trying again"), "{lines}");
    assert!(lines.contains(&format!("Image {local} is sha256:")), "{lines}");
    let job = bench.job(&absent, "IfPossible", json!({"pull_timeout_seconds": 2}));
    let error = prepare(&launcher, &job).await.0.unwrap_err().to_string();
    assert!(error.contains("it is not here, and pulling it failed"), "{error}");
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
