//! `prefect-worker doctor` on a real server and a real engine, from the host and from inside a container.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::work_pool::{NewWorkPool, WorkPoolUpdate};
use prefect_client::settings::Inputs;
use prefect_client::{Client, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::docker::{Container, Engine, Image};
use testkit::prefect::{Options, PrefectServer};
use testkit::process::{Command, Output};

/// Far more than anything here takes.
const DEADLINE: Duration = Duration::from_mins(2);
const PASSWORD: &str = "correct-horse";

fn doctor(env: &[(String, String)], arguments: &[&str]) -> Command {
    Command::new(env!("CARGO_BIN_EXE_prefect-worker"))
        .arg("doctor")
        .args(arguments.iter().copied())
        .env("PREFECT_HOME", "/nonexistent")
        .envs(env.iter().cloned())
        .current_dir("/")
}

async fn examined(env: &[(String, String)], arguments: &[&str]) -> Output {
    doctor(env, arguments).output(DEADLINE).await.unwrap()
}

/// The checks of a report in JSON.
struct Checks(Vec<Value>);

impl Checks {
    fn of(text: &str) -> Self {
        let report: Value = serde_json::from_str(text).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        let failed = checks.iter().any(|check| check["verdict"] == "failed");
        assert_eq!(report["ok"], json!(!failed));
        Self(checks)
    }

    /// The verdicts of a check about what has these words in its name, with what was found.
    fn found(&self, check: &str, subject: &str) -> (String, String) {
        let matching = |found: &&Value| {
            let own = found["subject"].as_str().unwrap_or_default();
            found["check"] == check && own.contains(subject)
        };
        let found: Vec<&Value> = self.0.iter().filter(matching).collect();
        assert_eq!(found.len(), 1, "{check} {subject}: {:#?}", self.0);
        let text = |name: &str| found[0][name].as_str().unwrap_or_default().to_owned();
        (text("verdict"), format!("{}; {}", text("found"), text("remedy")))
    }

    fn verdict(&self, check: &str, subject: &str) -> String {
        self.found(check, subject).0
    }

    fn assert(&self, expected: &[(&str, &str, &str, &str)]) {
        for (check, subject, verdict, part) in expected {
            let (found, text) = self.found(check, subject);
            assert!(found == *verdict && text.contains(part), "{check} {subject} is {found}: {text}");
        }
    }
}

/// A directory on the file system of `/`, to be removed with the value.
fn on_root_disk() -> TempDir {
    let root = Path::new("/").metadata().unwrap().dev();
    let places = ["/tmp", "/var/tmp", "/"].map(Path::new);
    let place = places.iter().find(|place| place.metadata().is_ok_and(|found| found.dev() == root)).unwrap();
    tempfile::Builder::new().prefix("ferryman-doctor-").tempdir_in(place).unwrap()
}

/// A site with faults: deployments that need what is there and what is not.
struct Site {
    engine: Engine,
    server: PrefectServer,
    image: String,
    full: TempDir,
    empty: TempDir,
    mounted: TempDir,
}

impl Site {
    async fn open() -> Self {
        let auth = Some(format!("admin:{PASSWORD}").into());
        let server = PrefectServer::start(Options { auth, ..Options::default() }).await.unwrap();
        let engine = Engine::connect().await.unwrap();
        let image = format!("{}:1", engine.name("doctor"));
        let contents = Image::scratch()
            .file("/usr/local/bin/prefect-worker", env!("CARGO_BIN_EXE_prefect-worker"))
            .bytes("/unique", image.clone(), 0o644)
            .dir("/nonexistent", 0o755)
            .env("PATH", "/usr/local/bin");
        engine.build_image(&image, contents).await.unwrap();
        engine.create_network(&engine.name("net")).await.unwrap();
        let (full, empty) = (on_root_disk(), on_root_disk());
        std::fs::write(full.path().join("file"), "x").unwrap();
        // A file system of its own on every Linux.
        let mounted = tempfile::tempdir_in("/dev/shm").unwrap();
        Self { engine, server, image, full, empty, mounted }
    }

    fn client(&self) -> Client {
        let environment = self.server.client_env().into_iter().collect();
        let directory = PathBuf::from("/nonexistent");
        Client::new(&Settings::resolve(&Inputs { environment, directory }).unwrap()).unwrap()
    }

    async fn furnish(&self, client: &Client) {
        let pool = NewWorkPool {
            name: "pool".to_owned(),
            kind: "docker".to_owned(),
            base_job_template: None,
            description: None,
            concurrency_limit: Some(3),
            is_paused: false,
        };
        client.create_work_pool(&pool).await.unwrap();
        let flow_id = client.create_flow("f").await.unwrap().id;
        let bind = |directory: &TempDir| format!("{}:/d", directory.path().display());
        let network = self.engine.name("net");
        for (name, variables) in [
            (
                "good",
                json!({"image": self.image, "image_pull_policy": "Never", "networks": [network],
                "volumes": [bind(&self.full)],
                "mounts": [{"type": "bind", "source": self.mounted.path(), "target": "/m"}]}),
            ),
            (
                "bad",
                json!({"image": "ferryman-no-such-image:1", "image_pull_policy": "Never",
                "networks": ["ferryman-no-such-network"], "volumes": ["/ferryman/no/such:/d", "ferryman-no-such-volume:/v"]}),
            ),
            ("unmounted", json!({"image": self.image, "volumes": [bind(&self.empty)]})),
            ("wrong", json!({"image": self.image, "mem_limit": "lots"})),
            ("block", json!({"image": self.image, "env": {"A": "{{ prefect.blocks.secret.no-such }}"}})),
        ] {
            let Value::Object(job_variables) = variables else { unreachable!("an object is an object") };
            let settings = DeploymentSettings {
                work_pool_name: Some("pool".to_owned()),
                parameter_openapi_schema: json!({"type": "object", "properties": {}}),
                job_variables,
                ..DeploymentSettings::default()
            };
            let deployment =
                NewDeployment { name: name.to_owned(), flow_id, settings, enforce_parameter_schema: false };
            client.create_deployment(&deployment).await.unwrap();
        }
    }

    /// The checks that a doctor makes in a container of the worker's image, at the host's network and engine.
    async fn inside(&self, arguments: &[&str]) -> Checks {
        let command = ["prefect-worker", "doctor", "--json"].into_iter().chain(arguments.iter().copied());
        let mut env = self.server.client_env();
        env.push(("PREFECT_HOME".to_owned(), "/nonexistent".to_owned()));
        let container = Container {
            image: self.image.clone(),
            command: command.map(str::to_owned).collect(),
            env,
            network: Some("host".to_owned()),
            binds: vec!["/var/run/docker.sock:/var/run/docker.sock".to_owned()],
            ..Container::default()
        };
        let id = self.engine.run(container).await.unwrap();
        self.engine.wait(&id, DEADLINE).await.unwrap();
        Checks::of(&self.engine.logs(&id).await.unwrap())
    }

    fn path(directory: &TempDir) -> &str {
        directory.path().to_str().unwrap()
    }
}

#[tokio::test]
async fn every_fault_of_a_site_is_named_from_the_host_and_inside() {
    let site = Site::open().await;
    let client = site.client();
    site.furnish(&client).await;
    let env = site.server.client_env();
    let (full, empty, mounted) = (Site::path(&site.full), Site::path(&site.empty), Site::path(&site.mounted));

    let report = examined(&env, &["--pool", "pool", "--json"]).await;
    assert_eq!(report.status.code(), Some(1), "{}", report.stdout);
    assert!(!report.stdout.contains(PASSWORD));
    let checks = Checks::of(&report.stdout);
    let jobs = [
        ("api", "", "ok", "answered within"),
        ("auth", "", "ok", "PREFECT_API_AUTH_STRING from the environment is accepted"),
        ("version", "", "ok", "Prefect 3.7.2"),
        ("clock", "of the API", "ok", "agrees"),
        ("clock", "of the engine", "ok", "agrees"),
        ("sockets", "", "ok", "WebSocket"),
        ("pool", "pool", "ok", "type docker, limit 3, workers online: 0"),
        ("template", "pool", "ok", "the worker gives it its own"),
        ("engine", "", "ok", "API 1."),
        ("deployment", "f/good", "ok", "mount of"),
        ("deployment", "f/wrong", "failed", "mem_limit must be an amount"),
        ("deployment", "f/block", "failed", "no-such"),
        ("image", "f/good", "ok", "it is here"),
        ("image", "f/bad", "failed", "image_pull_policy is Never"),
        ("network", &site.engine.name("net"), "ok", "it is there"),
        ("network", "ferryman-no-such-network", "failed", "docker network create"),
        ("volume", "ferryman-no-such-volume", "warning", "empty one"),
    ];
    checks.assert(&jobs);
    let mounts = [
        ("mount", "/ferryman/no/such", "failed", "does not exist on the host"),
        ("mount", full, "ok", "on the host's root disk"),
        ("mount", empty, "warning", "empty directory on the host's root disk"),
        ("mount", mounted, "ok", "a file system of its own (tmpfs"),
    ];
    checks.assert(&mounts);

    // Inside a container nothing of the host is seen, until a container of the same image may look.
    let blind = site.inside(&["--pool", "pool"]).await;
    blind.assert(&[("mount", full, "not_checked", "--probe-mounts"), ("engine", "", "ok", "on ")]);
    site.inside(&["--pool", "pool", "--probe-mounts"]).await.assert(&mounts);
    let by_image = ["--pool", "pool", "--probe-image", &site.image, "--json"];
    let by_image = examined(&env, &by_image).await;
    Checks::of(&by_image.stdout).assert(&mounts);
    let without = ["--pool", "pool", "--probe-image", "ferryman-no-such-image:1", "--json"];
    let without = Checks::of(&examined(&env, &without).await.stdout);
    without.assert(&[("mount", full, "not_checked", "--probe-image IMAGE")]);
    assert!(!Path::new("/ferryman").exists(), "a doctor changes nothing");
    let probes = site.engine.containers_with("io.ferryman.mount-probe", None).await.unwrap();
    assert!(probes.is_empty(), "{probes:?}");

    // What is sound alone is sound.
    let good = examined(&env, &["--deployment", "f/good"]).await;
    assert_eq!(good.status.code(), Some(0), "{}", good.stdout);
    assert!(good.stdout.contains("ok           deployment f/good: image "), "{}", good.stdout);
    assert!(!good.stdout.contains("f/bad") && good.stdout.trim_end().ends_with(" ok"), "{}", good.stdout);
    site.pool_faults(&client, &env).await;
    site.refusal(&env).await;
    site.engine.clean_up().await.unwrap();
}

impl Site {
    /// Pools that give no runs out, are not there, or are not for us.
    async fn pool_faults(&self, client: &Client, env: &[(String, String)]) {
        let checks = async |arguments: &[&str]| {
            let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
            Checks::of(&examined(env, &arguments).await.stdout)
        };
        checks(&["--pool", "none"]).await.assert(&[("pool", "none", "failed", "none of this name")]);
        let made = checks(&["--pool", "none", "--type", "docker"]).await;
        made.assert(&[("pool", "none", "warning", "--type docker makes it")]);
        let other = checks(&["--pool", "pool", "--type", "process"]).await;
        other.assert(&[("pool", "pool", "failed", "of type \"docker\", not \"process\"")]);
        let absent = checks(&["--deployment", "f/none", "--deployment", "f"]).await;
        absent.assert(&[("deployment", "f/none", "failed", "none of this name")]);

        let template = json!({"job_configuration": {"image": "{{ image }}", "odd": 1},
            "variables": {"properties": {"image": {"type": "string"}}}});
        let update = WorkPoolUpdate {
            base_job_template: Some(serde_json::from_value(template).unwrap()),
            is_paused: Some(true),
            ..WorkPoolUpdate::default()
        };
        client.update_work_pool("pool", &update).await.unwrap();
        let changed = checks(&["--deployment", "f/good"]).await;
        changed.assert(&[
            ("pool", "pool", "warning", "paused"),
            ("template", "pool", "warning", "it lacks"),
            ("deployment", "f/good", "warning", "nobody obeys odd"),
        ]);
    }

    /// Credentials that the server does not take, and none.
    async fn refusal(&self, env: &[(String, String)]) {
        let wrong = ("PREFECT_API_AUTH_STRING".to_owned(), "admin:battery-staple".to_owned());
        for (env, part) in [
            (env.iter().cloned().chain([wrong]).collect::<Vec<_>>(), "from the environment was used"),
            (
                env.iter().filter(|(name, _)| !name.contains("AUTH")).cloned().collect(),
                "no credentials are set",
            ),
        ] {
            let report = examined(&env, &["--pool", "pool", "--json"]).await;
            assert_eq!(report.status.code(), Some(1));
            assert!(!report.stdout.contains("battery-staple"));
            let checks = Checks::of(&report.stdout);
            checks.assert(&[
                ("auth", "", "failed", part),
                ("pool", "pool", "not_checked", "does not accept the credentials"),
                ("engine", "", "ok", ""),
            ]);
        }
    }
}

#[tokio::test]
async fn what_is_away_is_told_and_the_rest_is_looked_at() {
    let env = |url: &str, host: &str| {
        [("PREFECT_API_URL", url), ("DOCKER_HOST", host)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    // Port 9 is nobody's.
    let away = env("http://127.0.0.1:9/api", "");
    let report = examined(&away, &["--pool", "p", "--deployment", "f/d", "--json"]).await;
    assert_eq!(report.status.code(), Some(1));
    let checks = Checks::of(&report.stdout);
    checks.assert(&[
        ("api", "", "failed", "is the Prefect server running"),
        ("pool", "p", "not_checked", "the API is away"),
        ("deployment", "f/d", "not_checked", "the API is away"),
    ]);
    assert_eq!(checks.verdict("engine", ""), "ok");

    let no_engine = env("http://127.0.0.1:9/api", "unix:///no/such.sock");
    let report = examined(&no_engine, &[]).await;
    assert_eq!(report.status.code(), Some(1));
    assert!(report.stdout.contains("FAILED       engine: "), "{}", report.stdout);
    assert!(report.stdout.contains("hint: is the engine running?"), "{}", report.stdout);
}

#[tokio::test]
async fn without_an_api_to_look_at_it_is_a_matter_of_configuration() {
    let report = examined(&[("PREFECT_API_URL".to_owned(), String::new())], &[]).await;
    assert_eq!(report.status.code(), Some(64), "{}", report.stderr);
    assert!(report.stderr.contains("PREFECT_API_URL"), "{}", report.stderr);
    let usage = examined(&[], &["--type", "kubernetes"]).await;
    assert_eq!(usage.status.code(), Some(2), "{}", usage.stderr);
}

#[tokio::test]
async fn a_policy_is_read_and_judges_the_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("policy.toml");
    std::fs::write(&wrong, "[images]\nalow = ['**']\n").unwrap();
    let env = [("PREFECT_API_URL".to_owned(), "http://127.0.0.1:9/api".to_owned())];
    let report = examined(&env, &["--policy", wrong.to_str().unwrap(), "--json"]).await;
    Checks::of(&report.stdout).assert(&[("policy", "", "failed", "did you mean allow?")]);

    let server =
        testkit::prefect::FakeServer::start("p", "docker", json!({"image": "a:1", "privileged": true}));
    let server = server.await.unwrap();
    let right = folder.path().join("right.toml");
    std::fs::write(&right, "[images]\nallow = ['**']\n").unwrap();
    let env = [("PREFECT_API_URL".to_owned(), server.api_url())];
    let report = examined(&env, &["--pool", "p", "--policy", right.to_str().unwrap(), "--json"]).await;
    Checks::of(&report.stdout).assert(&[
        ("policy", "", "ok", "right.toml"),
        ("sockets", "", "warning", "polls over REST"),
        ("deployment", "flow/deployment", "failed", "policy of this worker forbids it"),
    ]);
}
