//! `prefect-worker reap` against the real engine and the real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod bench;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use bench::{Bench, Silent, exited};
use bollard::models::{ContainerConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptions, TagImageOptionsBuilder,
};
use jiff::{SignedDuration, Timestamp};
use prefect_api::flow_run::{FlowRunPolicy, FlowRunUpdate, NewFlowRun};
use prefect_api::id::{FlowRunId, WorkPoolId};
use prefect_api::state::{NewState, StateType};
use prefect_api::work_pool::{NewWorkPool, WorkPool};
use prefect_client::settings::Inputs;
use prefect_client::{Client, Settings};
use prefect_worker::launcher::{DockerLauncher, Infrastructure, Job, Launcher as _};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::docker::{Container, Engine, Image};
use testkit::prefect::{FakeServer, Options, PrefectServer};
use testkit::process::{Command, Output};
use testkit::registry::Registry;

/// Far more than anything here takes, so that a fault ends in a failure.
const DEADLINE: Duration = Duration::from_mins(1);

/// The command line, with a home of its own.
struct Reaper {
    home: TempDir,
    variables: Vec<(String, String)>,
}

impl Reaper {
    fn new(api_url: &str) -> Self {
        let variables = vec![
            ("PREFECT_API_URL".to_owned(), api_url.to_owned()),
            ("PREFECT_CLIENT_MAX_RETRIES".to_owned(), "0".to_owned()),
        ];
        Self { home: tempfile::tempdir().unwrap(), variables }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let command = Command::new(env!("CARGO_BIN_EXE_prefect-worker")).arg("reap").args(arguments);
        let command = command.env("PREFECT_HOME", self.home.path()).envs(self.variables.clone());
        command.current_dir(self.home.path()).output(DEADLINE).await.unwrap()
    }

    async fn text(&self, arguments: &[&str]) -> String {
        self.run(arguments).await.success().unwrap().stdout
    }

    /// What it says of everything, by name.
    async fn items(&self, arguments: &[&str]) -> BTreeMap<String, Value> {
        let text = self.text(&[arguments, &["--json"]].concat()).await;
        let document: Value = serde_json::from_str(&text).unwrap();
        let items = document["items"].as_array().unwrap().iter();
        items.map(|item| (item["name"].as_str().unwrap().to_owned(), item.clone())).collect()
    }
}

/// A server, an engine, and what is left of runs.
struct Scene {
    server: PrefectServer,
    client: Client,
    bench: Bench,
    reaper: Reaper,
    pool: WorkPool,
}

impl Scene {
    async fn new() -> Self {
        let server = PrefectServer::start(Options::default()).await.unwrap();
        let environment = server.client_env().into_iter().collect();
        let settings = Settings::resolve(&Inputs { environment, directory: PathBuf::from("/nonexistent") });
        let bench = Bench::new().await;
        let client = Client::new(&settings.unwrap()).unwrap();
        let pool = NewWorkPool {
            name: bench.engine.name("pool"),
            kind: "docker".to_owned(),
            base_job_template: None,
            description: None,
            concurrency_limit: None,
            is_paused: false,
        };
        let pool = client.create_work_pool(&pool).await.unwrap();
        Self { client, reaper: Reaper::new(&server.api_url()), server, bench, pool }
    }

    async fn run(&self) -> FlowRunId {
        let flow_id = self.client.create_flow("flow").await.unwrap().id;
        let run = NewFlowRun {
            state: NewState::new(StateType::Pending),
            name: None,
            flow_id,
            flow_version: None,
            parameters: Map::new(),
            parent_task_run_id: None,
            empirical_policy: FlowRunPolicy::default(),
            tags: Vec::new(),
            idempotency_key: None,
            job_variables: Map::new(),
        };
        self.client.create_flow_run(&run).await.unwrap().id
    }

    async fn enter(&self, id: FlowRunId, state: StateType, infrastructure_pid: &str) {
        let pid = Some(infrastructure_pid.to_owned());
        let update = FlowRunUpdate { infrastructure_pid: pid, ..FlowRunUpdate::default() };
        self.client.update_flow_run(id, &update).await.unwrap();
        self.client.set_flow_run_state(id, &NewState::new(state), true).await.unwrap();
    }

    fn job(&self, run: FlowRunId, name: &str, command: &str) -> Job {
        let mut job = self.bench.job(command, json!({}));
        job.attempt.flow_run_id = run;
        job.attempt.work_pool_id = Some(self.pool.id);
        name.clone_into(&mut job.name);
        job.env.insert("TOKEN".to_owned(), Some("not-for-anybody".to_owned()));
        job
    }

    /// What a run has left that is in `state` and has ended.
    async fn ended(&self, name: &str, state: StateType) -> Infrastructure {
        let run = self.run().await;
        let left = self.end(run, name).await;
        self.enter(run, state, &left.pid).await;
        left
    }

    async fn end(&self, run: FlowRunId, name: &str) -> Infrastructure {
        let left = self.bench.start(&self.job(run, name, "/probe exit 0")).await;
        assert_eq!(self.bench.end(&left).await.0, exited(0));
        left
    }

    /// A container of somebody else, which has ended.
    async fn other(&self, name: &str, image: &str, labels: Vec<(String, String)>) -> Infrastructure {
        let command = vec!["/probe".to_owned(), "exit".to_owned(), "0".to_owned()];
        let container = Container {
            image: image.to_owned(),
            name: Some(name.to_owned()),
            command,
            labels,
            ..Container::default()
        };
        let id = self.bench.engine.run(container).await.unwrap();
        assert_eq!(self.bench.engine.wait(&id, DEADLINE).await.unwrap(), 0);
        Infrastructure::new(id, name, "")
    }
}

#[tokio::test]
async fn only_what_is_ours_and_reported_is_removed() {
    let scene = Scene::new().await;
    let Scene { bench, reaper, .. } = &scene;
    let pool = scene.pool.name.as_str();
    let name = |stem: &str| bench.engine.name(stem);

    let completed = scene.ended(&name("completed"), StateType::Completed).await;
    let unreported = scene.ended(&name("unreported"), StateType::Running).await;
    let retried = scene.run().await;
    let past = scene.end(retried, &name("past")).await;
    scene.enter(retried, StateType::Running, "unix:///var/run/docker.sock:0123456789ab").await;
    let deleted = scene.end(FlowRunId::generate(), &name("deleted")).await;
    // A pool of the same name, on another server.
    let mut job = scene.job(FlowRunId::generate(), &name("elsewhere"), "/probe exit 0");
    job.attempt.work_pool_id = Some(WorkPoolId::generate());
    let elsewhere = bench.start(&job).await;
    assert_eq!(bench.end(&elsewhere).await.0, exited(0));
    let cancelled = scene.run().await;
    let running = bench.start(&scene.job(cancelled, &name("running"), "/probe sleep 600")).await;
    scene.enter(cancelled, StateType::Cancelled, &running.pid).await;
    let crashed = scene.run().await;
    let unstarted = bench.create(&scene.job(crashed, &name("unstarted"), "/probe exit 0")).await;
    scene.enter(crashed, StateType::Crashed, &unstarted.pid).await;
    let label = |name: &str, value: &str| (format!("io.ferryman.{name}"), value.to_owned());
    let of_pool = vec![label("work-pool", pool), label("worker", "worker")];
    let hooks = [of_pool.clone(), vec![label("companion-of", &completed.id)]].concat();
    let companion = scene.other(&name("companion"), &bench.image, hooks).await;

    let foreign = scene.other(&name("foreign"), &bench.image, Vec::new()).await;
    let labelled = scene.other(&name("labelled"), &bench.image, of_pool).await;
    // Somebody makes an image of a container of ours to look into it: the labels go along.
    let commit = CommitContainerOptionsBuilder::new().container(&completed.id).build();
    let copy = bench.engine.api().commit_container(commit, ContainerConfig::default()).await.unwrap().id;
    let copied = scene.other(&name("copied"), &copy, Vec::new()).await;
    let all = [
        &completed,
        &unreported,
        &past,
        &deleted,
        &elsewhere,
        &running,
        &unstarted,
        &companion,
        &foreign,
        &labelled,
        &copied,
    ];
    let assert_all_there = async |when: &str| {
        for container in all {
            assert!(bench.exists(container).await, "{} is gone {when}", container.name);
        }
    };

    let text = reaper.text(&["--yes", "--pool", pool]).await;
    assert!(text.contains("less than 24h ago") && text.contains("removed 0 (0 B), keeps 8\n"), "{text}");
    assert_all_there("before its time").await;
    assert_eq!(reaper.items(&["--older-than", "0s", "--yes", "--pool", "another"]).await.len(), 0);

    let text = reaper.text(&["--older-than", "0s"]).await;
    let line = |container: &Infrastructure| {
        let quoted = format!("{:?}", container.name);
        text.lines().find(|line| line.contains(&quoted)).unwrap_or_default()
    };
    for (container, why) in [
        (&completed, "Completed"),
        (&past, "another container"),
        (&deleted, "deleted"),
        (&unstarted, "Crashed"),
        (&companion, "hooks"),
    ] {
        let line = line(container);
        assert!(line.starts_with("would remove container") && line.contains(why), "{line}");
        assert!(
            container.id.starts_with(line.split([' ', ',']).nth(4).unwrap()) && line.contains(pool),
            "{line}"
        );
    }
    assert!(
        line(&unreported).ends_with("its run is Running: a worker has to report its end first"),
        "{text}"
    );
    assert!(line(&running).ends_with("it is running"), "{text}");
    assert!(line(&elsewhere).contains("its work pool is not on this server"), "{text}");
    for unseen in [&foreign, &labelled, &copied] {
        assert_eq!(line(unseen), "", "it is not ours");
    }
    assert!(!text.contains("not-for-anybody"), "{text}");
    assert_all_there("after a dry run").await;

    let items = reaper.items(&["--older-than", "0s", "--yes"]).await;
    for container in [&completed, &past, &deleted, &unstarted, &companion] {
        assert_eq!(items[&container.name]["outcome"], "removed");
        assert!(!bench.exists(container).await, "{}", container.name);
    }
    for container in [&unreported, &elsewhere, &running, &foreign, &labelled, &copied] {
        assert!(bench.exists(container).await, "{}", container.name);
    }
    let again = reaper.items(&["--older-than", "0s", "--yes", "--pool", pool]).await;
    assert!(again.len() == 3 && again.values().all(|item| item["outcome"] == "kept"), "{again:?}");

    for container in [&copied, &running] {
        bench.engine.remove_container(&container.id).await.unwrap();
    }
    bench.engine.remove_image(&copy).await.unwrap();
    scene.bench.clean_up().await;
    scene.server.stop().await.unwrap();
}

#[tokio::test]
async fn nothing_is_removed_without_server_or_engine() {
    let bench = Bench::new().await;
    let pool = bench.engine.name("pool");
    let server = FakeServer::start("another", "docker", json!({})).await.unwrap();
    let left = bench.start(&bench.job("/probe exit 0", json!({}))).await;
    assert_eq!(bench.end(&left).await.0, exited(0));
    let arguments = ["--older-than", "0s", "--yes", "--pool", &pool];

    let nobody = Reaper::new("http://127.0.0.1:9/api").run(&arguments).await;
    assert_eq!(nobody.status.code(), Some(69), "{}", nobody.stderr);
    assert!(bench.exists(&left).await);
    let api_url = server.api_url();
    let no_engine = Reaper::new(&api_url).with("DOCKER_HOST", "unix:///no/such.sock").run(&arguments).await;
    assert_eq!(no_engine.status.code(), Some(69), "{}", no_engine.stderr);
    assert!(no_engine.stderr.contains("unix:///no/such.sock"), "{}", no_engine.stderr);
    let wrong = Reaper::new("no url").run(&arguments).await;
    assert_eq!(wrong.status.code(), Some(64), "{}", wrong.stderr);
    let wrong = Reaper::new(&api_url).run(&["--older-than", "soon"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("--older-than") && wrong.stderr.contains("7d"), "{}", wrong.stderr);
    let wrong = Reaper::new(&api_url).run(&["--images", "--pool", &pool]).await;
    assert_eq!(wrong.status.code(), Some(2), "images belong to no pool: {}", wrong.stderr);
    assert!(bench.exists(&left).await);

    let text = Reaper::new(&api_url).text(&arguments).await;
    assert!(text.starts_with("removed container") && text.contains("its run was deleted"), "{text}");
    assert!(!bench.exists(&left).await);
    bench.clean_up().await;
}

/// Images that a worker has pulled, or has not.
struct Gallery {
    bench: Bench,
    registry: Registry,
    reaper: Reaper,
    _server: FakeServer,
}

impl Gallery {
    async fn new() -> Self {
        let server = FakeServer::start("another", "docker", json!({})).await.unwrap();
        let reaper = Reaper::new(&server.api_url());
        let registry = Registry::start().await.unwrap();
        Self { bench: Bench::new().await, registry, reaper, _server: server }
    }

    fn engine(&self) -> &Engine {
        &self.bench.engine
    }

    /// An image that is in the registry, and here under the registry's name; no two are equal.
    async fn pushed(&self, name: &str) -> String {
        let local = format!("{}:{}", self.engine().name("built"), uuid::Uuid::new_v4().simple());
        let contents = Image::scratch().file("/probe", bench::probe()).bytes("/unique", local.clone(), 0o644);
        self.engine().build_image(&local, contents).await.unwrap();
        let reference = self.registry.push(self.engine(), &local, name).await.unwrap();
        self.engine().remove_image(&local).await.unwrap();
        reference
    }

    /// An image that a worker has pulled.
    async fn pulled(&self, name: &str) -> String {
        let reference = self.pushed(name).await;
        self.engine().remove_image(&reference).await.unwrap();
        self.prepare(&reference, "IfNotPresent").await;
        reference
    }

    /// What a worker does before it makes a container. Each time it is another worker.
    async fn prepare(&self, image: &str, policy: &str) -> Job {
        let job = self.bench.job("/probe exit 0", json!({"image": image, "image_pull_policy": policy}));
        let worker = DockerLauncher::connect(&|name| std::env::var(name).ok()).await.unwrap();
        worker.prepare(&job, &Silent).await.unwrap();
        job
    }

    async fn id(&self, image: &str) -> Option<String> {
        self.engine().image_id(image).await.unwrap()
    }

    /// The record of an image: its volumes' labels, by name.
    async fn records(&self, id: &str) -> BTreeMap<String, HashMap<String, String>> {
        let label = format!("io.ferryman.image-id={id}");
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self.engine().api().list_volumes(Some(options)).await.unwrap().volumes;
        volumes.unwrap_or_default().into_iter().map(|volume| (volume.name, volume.labels)).collect()
    }

    /// Lets two days go by without a use of an image.
    async fn age(&self, id: &str) {
        let records = self.records(id).await;
        assert!(!records.is_empty(), "there is no record of {id}");
        for (name, mut labels) in records {
            let long_ago = Timestamp::now() - SignedDuration::from_hours(48);
            labels.insert("io.ferryman.image-last-used".to_owned(), long_ago.to_string());
            self.engine().api().remove_volume(&name, None::<RemoveVolumeOptions>).await.unwrap();
            let request =
                VolumeCreateRequest { name: Some(name), labels: Some(labels), ..Default::default() };
            self.engine().api().create_volume(request).await.unwrap();
        }
    }

    /// A container of somebody's.
    async fn run(&self, image: &str) -> String {
        let command = vec!["/probe".to_owned(), "exit".to_owned(), "0".to_owned()];
        let container = Container { image: image.to_owned(), command, ..Container::default() };
        self.engine().run(container).await.unwrap()
    }

    async fn tag(&self, image: &str, repository: &str) -> String {
        let options = TagImageOptionsBuilder::new().repo(repository).tag("1").build();
        self.engine().api().tag_image(image, Some(options)).await.unwrap();
        format!("{repository}:1")
    }
}

#[tokio::test]
async fn images_go_if_a_worker_pulled_them_and_nothing_has_used_them_for_long() {
    let gallery = Gallery::new().await;
    let engine = gallery.engine();

    let old = gallery.pulled("old:1").await;
    let old_id = gallery.id(&old).await.unwrap();
    gallery.age(&old_id).await;
    let young = gallery.pulled("young:1").await;
    let reused = gallery.pulled("reused:1").await;
    gallery.age(&gallery.id(&reused).await.unwrap()).await;
    gallery.prepare(&reused, "Never").await;
    let used = gallery.pulled("used:1").await;
    gallery.age(&gallery.id(&used).await.unwrap()).await;
    let container = gallery.run(&used).await;
    let parent = gallery.pulled("parent:1").await;
    gallery.age(&gallery.id(&parent).await.unwrap()).await;
    let seed = gallery.run(&parent).await;
    let commit = CommitContainerOptionsBuilder::new().container(&seed).build();
    let child = engine.api().commit_container(commit, ContainerConfig::default()).await.unwrap().id;
    engine.remove_container(&seed).await.unwrap();
    let shared = gallery.pulled("shared:1").await;
    let theirs = gallery.tag(&shared, &engine.name("theirs")).await;
    gallery.age(&gallery.id(&shared).await.unwrap()).await;
    let moved = gallery.pulled("moved:1").await;
    let former = gallery.id(&moved).await.unwrap();
    gallery.age(&former).await;
    assert_eq!(gallery.pushed("moved:1").await, moved);
    gallery.tag(&former, moved.trim_end_matches(":1")).await;
    gallery.prepare(&moved, "Always").await;
    assert_ne!(gallery.id(&moved).await.unwrap(), former);

    // Not ours, though jobs use them: built here, and already here when the registry confirmed them.
    let confirmed = gallery.pushed("confirmed:1").await;
    for (image, policy) in [(&gallery.bench.image, "IfNotPresent"), (&confirmed, "Always")] {
        gallery.prepare(image, policy).await;
        assert_eq!(gallery.records(&gallery.id(image).await.unwrap()).await.len(), 0, "{image}");
    }

    let text = gallery.reaper.text(&[]).await;
    assert!(!text.contains("image "), "it was not asked for images: {text}");
    let text = gallery.reaper.text(&["--images"]).await;
    let line = |image: &str| text.lines().find(|line| line.contains(image)).unwrap_or_default();
    for (image, begin, end) in [
        (&old, "would remove image", "a worker pulled it, and nothing uses it"),
        (&young, "keeps image", "a job used it less than 24h ago"),
        (&reused, "keeps image", "a job used it less than 24h ago"),
        (&used, "keeps image", "was made of it"),
        (&parent, "keeps image", "another image was made of it"),
        (&shared, "would remove image", "goes"),
    ] {
        let line = line(image);
        assert!(line.starts_with(begin) && line.ends_with(end), "{image} in {text}");
    }
    assert_eq!(
        text.matches(&moved).count(),
        2,
        "the image that the tag was moved from, and the present one: {text}"
    );
    assert_eq!((line(&confirmed), line(&gallery.bench.image)), ("", ""), "they are not ours");
    for image in [&old, &young, &reused, &used, &parent, &shared, &theirs, &moved, &former, &confirmed] {
        assert!(gallery.id(image).await.is_some(), "{image} is gone after a dry run");
    }

    let text = gallery.reaper.text(&["--images", "--yes"]).await;
    for image in [&old, &shared, &former] {
        assert_eq!(gallery.id(image).await, None, "{image}: {text}");
    }
    for image in [&young, &reused, &used, &parent, &theirs, &moved, &confirmed, &gallery.bench.image] {
        assert!(gallery.id(image).await.is_some(), "{image}: {text}");
    }
    assert_eq!(gallery.records(&old_id).await.len(), 0, "its record goes with an image");
    let again = gallery.reaper.text(&["--images", "--yes"]).await;
    assert!(!again.contains(&old) && !again.contains(&shared), "{again}");

    engine.remove_container(&container).await.unwrap();
    engine.remove_image(&child).await.unwrap();
    gallery.bench.clean_up().await;
}

#[tokio::test]
async fn a_use_is_recorded_once_an_hour_and_until_the_end() {
    let gallery = Gallery::new().await;
    let image = gallery.pulled("recorded:1").await;
    let id = gallery.id(&image).await.unwrap();
    let first = gallery.records(&id).await;
    assert_eq!(first.len(), 1);
    assert_eq!(first.values().next().unwrap()["io.ferryman.image"], image);
    gallery.prepare(&image, "Always").await;
    gallery.prepare(&image, "IfNotPresent").await;
    assert_eq!(gallery.records(&id).await, first);

    let job = gallery.prepare(&image, "Never").await;
    gallery.age(&id).await;
    let aged = gallery.records(&id).await;
    let container = gallery.bench.launcher.create(&job).await.unwrap();
    assert_eq!(gallery.records(&id).await, aged);
    gallery.bench.launcher.tidy(&container).await.unwrap();
    let renewed = gallery.records(&id).await;
    assert_eq!(renewed.len(), 1);
    let last_use = |records: &BTreeMap<String, HashMap<String, String>>| -> Timestamp {
        records.values().next().unwrap()["io.ferryman.image-last-used"].parse().unwrap()
    };
    assert!(last_use(&renewed) >= last_use(&first), "{renewed:?}");

    // A worker that died in between has left both.
    let filters = renewed.values().next().unwrap().clone();
    let twice = VolumeCreateRequest {
        name: Some(format!("ferryman-image-{}", uuid::Uuid::new_v4())),
        labels: Some(filters),
        ..Default::default()
    };
    gallery.engine().api().create_volume(twice).await.unwrap();
    gallery.age(&id).await;
    gallery.prepare(&image, "Never").await;
    assert_eq!(gallery.records(&id).await.len(), 1);
    gallery.bench.clean_up().await;
}
