//! The real Docker engine: images from scratch, containers, networks, and nothing left behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use testkit::docker::{Container, Daemon, Engine, Image, python_image};
use testkit::prefect::{Options, PrefectServer, Venv};
use testkit::scicat::{Options as SciCatOptions, SciCat};

const DEADLINE: Duration = Duration::from_mins(2);
const PROGRAM: &str = env!("CARGO_BIN_EXE_ferryman-scicat");

#[tokio::test]
async fn an_image_from_scratch_runs_and_is_removed_in_the_end() {
    let engine = Engine::connect().await.unwrap();
    let tag = engine.name("program");
    let image = Image::scratch().program("/app", PROGRAM).await.unwrap().symlink("/bin/link", "/app");
    let image = image.dir("/tmp", 0o1777).env("GREETING", "a $ and \"quotes\"").user("1000:1000");
    let image = image.healthcheck(["/app", "--help"]);
    let id = engine.build_image(&tag, image.entrypoint(["/bin/link"]).cmd(["--help"])).await.unwrap();
    assert!(engine.image_size(&tag).await.unwrap() > 1_000_000);
    let config = engine.api().inspect_image(&id).await.unwrap().config.unwrap();
    assert!(config.env.unwrap().contains(&"GREETING=a $ and \"quotes\"".to_owned()));
    assert_eq!(config.healthcheck.unwrap().test.unwrap(), ["CMD", "/app", "--help"]);

    let network = engine.name("network");
    engine.create_network(&network).await.unwrap();
    let gateway = engine.gateway(&network).await.unwrap();
    assert_ne!(gateway, engine.gateway("bridge").await.unwrap());

    let help = Container { image: tag.clone(), network: Some(network.clone()), ..Container::default() };
    let help = engine.run(help).await.unwrap();
    assert_eq!(engine.wait(&help, DEADLINE).await.unwrap(), 0);
    assert!(engine.logs(&help).await.unwrap().contains("--port"));

    let wrong =
        Container { image: tag.clone(), command: vec!["--nonsense".to_owned()], ..Container::default() };
    let wrong = engine.run(wrong).await.unwrap();
    assert_eq!(engine.wait(&wrong, DEADLINE).await.unwrap(), 2);

    let serving = Container {
        image: tag.clone(),
        command: vec!["--port".to_owned(), "80".to_owned()],
        ..Container::default()
    };
    let serving = engine.run(serving).await.unwrap();
    assert!(engine.rss_peak(&serving).await.unwrap().unwrap() > 100_000);
    engine.memory_peak(&serving).await.unwrap();

    let (label, run) = engine.run_label();
    let (label, run) = (label.to_owned(), run.to_owned());
    assert_eq!(engine.containers_with(&label, Some(&run)).await.unwrap().len(), 3);
    drop(engine);
    let engine = Engine::connect().await.unwrap();
    assert!(engine.containers_with(&label, Some(&run)).await.unwrap().is_empty());
    assert_eq!(engine.image_id(&tag).await.unwrap(), None);
    assert!(engine.gateway(&network).await.is_err());
}

#[tokio::test]
async fn a_container_reaches_servers_of_this_machine_through_the_gateway() {
    let engine = Engine::connect().await.unwrap();
    let scicat =
        SciCat::start(SciCatOptions { host: [0, 0, 0, 0].into(), ..SciCatOptions::default() }).await.unwrap();
    let venv = Venv::prepare().await.unwrap();
    let image = python_image(&engine, &venv).await.unwrap();
    let gateway = engine.gateway("bridge").await.unwrap();
    let url = format!("http://{gateway}:{}/api/v3/health", scicat.addr().port());
    let code = format!("import urllib.request as r; print(r.urlopen('{url}').read())");
    let command = vec!["python".to_owned(), "-c".to_owned(), code];
    let id = engine.run(Container { image, command, ..Container::default() }).await.unwrap();
    assert_eq!(engine.wait(&id, DEADLINE).await.unwrap(), 0, "{}", engine.logs(&id).await.unwrap());
    assert!(engine.logs(&id).await.unwrap().contains("mongodb"));
}

/// The whole Python chain: server, worker, engine and flow in its container.
#[tokio::test]
async fn a_python_worker_runs_a_python_flow_in_the_peer_image() {
    let engine = Engine::connect().await.unwrap();
    let server =
        PrefectServer::start(Options { host: [0, 0, 0, 0].into(), ..Options::default() }).await.unwrap();
    let image = python_image(&engine, server.venv()).await.unwrap();
    let network = engine.name("flow");
    engine.create_network(&network).await.unwrap();
    let url = server.api_url_via(&engine.gateway(&network).await.unwrap().to_string());
    let pool = ["work-pool", "create", "--type", "docker", "peer"];
    server.prefect(&pool, DEADLINE).await.unwrap().success().unwrap();
    let code = "import sys; from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentCreate
image, network, url, label, value = sys.argv[1:]
with get_client(sync_client=True) as client:
    flow = client.create_flow_from_name('greet')
    deployment = client.create_deployment(flow_id=flow, name='peer', work_pool_name='peer',
        path='/opt/flow', entrypoint='flow.py:greet', job_variables={'image': image, 'networks': [network],
        'image_pull_policy': 'Never', 'labels': {label: value}, 'env': {'PREFECT_API_URL': url}})
    print(client.create_flow_run_from_deployment(deployment, parameters={'name': 'peer'}).id)";
    let (label, value) = engine.run_label();
    let output = server
        .python(code, &[&image, &network, &url, label, value], DEADLINE)
        .await
        .unwrap()
        .success()
        .unwrap();
    let run = output.stdout.trim().to_owned();
    let mut worker = server.start_python_worker("peer", &["--run-once"], &[]).unwrap();
    let status = worker.wait(DEADLINE).await.unwrap();
    assert!(status.success(), "{}", worker.log());
    let url = format!("{}/flow_runs/{run}", server.api_url());
    let state = reqwest::get(url).await.unwrap().json::<serde_json::Value>().await.unwrap();
    assert_eq!(state["state_type"], "COMPLETED", "{}", worker.log());
    assert_eq!(engine.containers_with("io.prefect.flow-run-id", Some(&run)).await.unwrap().len(), 1);
}

/// Running, exited with which code, of each container.
async fn states(engine: &Engine, ids: &[String]) -> Vec<(bool, i64)> {
    let mut states = Vec::new();
    for id in ids {
        let state = engine.inspect(id).await.unwrap().state.unwrap();
        states.push((state.running.unwrap(), state.exit_code.unwrap()));
    }
    states
}

#[tokio::test]
async fn an_engine_of_ones_own_is_killed_and_comes_back_with_or_without_its_containers() {
    let links = || ["docker0", "lo"].map(|name| std::path::Path::new("/sys/class/net").join(name).exists());
    let before = links();
    let mut daemon = Daemon::start().await.unwrap();
    let engine = daemon.connect().await.unwrap();
    let image = engine.name("killed");
    engine.build_image(&image, Image::scratch().program("/app", PROGRAM).await.unwrap()).await.unwrap();
    assert_eq!(Engine::connect().await.unwrap().image_id(&image).await.unwrap(), None, "another engine");
    let mut ids = Vec::new();
    for port in ["0", "nonsense"] {
        let command = vec!["/app".to_owned(), "--port".to_owned(), port.to_owned()];
        let network = Some("none".to_owned());
        let container = Container { image: image.clone(), command, network, ..Container::default() };
        ids.push(engine.run(container).await.unwrap());
    }
    assert_eq!(engine.wait(&ids[1], DEADLINE).await.unwrap(), 2);

    daemon.kill().await.unwrap();
    assert!(Engine::connect_to(&daemon.host()).await.is_err());
    daemon.restart(true).await.unwrap();
    assert_eq!(states(&engine, &ids).await, [(true, 0), (false, 2)]);
    daemon.kill().await.unwrap();
    daemon.restart(false).await.unwrap();
    let ended = states(&engine, &ids).await;
    assert!(!ended[0].0 && ended[1] == (false, 2), "{ended:?}");

    let socket = daemon.host().strip_prefix("unix://").unwrap().to_owned();
    let directory = std::path::Path::new(&socket).parent().unwrap().to_owned();
    drop(engine);
    daemon.stop().await.unwrap();
    assert_eq!(links(), before, "the machine's network is its own");
    assert!(!directory.exists());
}
