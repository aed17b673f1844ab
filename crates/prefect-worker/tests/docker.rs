//! The Docker launcher against the real engine.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod bench;

use std::time::Duration;

use bench::{Bench, Silent, exited, probe};
use jiff::Timestamp;
use prefect_worker::launcher::{DockerLauncher, LaunchError, Launcher, Outcome, Phase};
use secrecy::ExposeSecret;
use serde_json::json;
use testkit::docker::Image;

#[tokio::test]
async fn output_environment_and_exit_codes_come_back() {
    let bench = Bench::new().await;
    let mut job = bench.job("/probe env", json!({"container_create_kwargs": {"hostname": "probe-host"}}));
    job.base_env.insert("PREFECT_API_URL".to_owned(), "http://api.example/api".to_owned());
    job.env.insert("GREETING".to_owned(), Some("two words".to_owned()));
    let (outcome, output) = bench.end(&bench.start(&job).await).await;
    assert_eq!(outcome, exited(0));
    for line in ["PREFECT_API_URL=http://api.example/api", "GREETING=two words", "HOSTNAME=probe-host"] {
        assert!(output.lines().any(|found| found == line), "{line} is missing in {output}");
    }

    let failing = bench.start(&bench.job("/probe exit 3", json!({}))).await;
    assert_eq!(bench.end(&failing).await.0, exited(3));
    bench.launcher.tidy(&failing).await.unwrap();
    assert_eq!(bench.end(&failing).await.0, exited(3), "waiting again gives the same answer");

    assert_eq!(bench.launcher.wait(&failing, None).await, exited(3));

    let printing = bench.start(&bench.job("/probe print something", json!({}))).await;
    assert_eq!(bench.end(&printing).await, (exited(0), "something\n".to_owned()));
    assert_eq!(bench.end_after(&printing, Some(Timestamp::now())).await, (exited(0), String::new()));
    assert_eq!(bench.launcher.tail(&printing, 5).await, ["something"]);
    bench.clean_up().await;
}

#[tokio::test]
async fn a_taken_name_gets_a_number_and_an_unstarted_attempt_is_replaced() {
    let bench = Bench::new().await;
    let first = bench.create(&bench.job("/probe exit 0", json!({}))).await;
    let job = bench.job("/probe exit 0", json!({}));
    let second = bench.create(&job).await;
    assert_eq!(second.name, format!("{}-1", first.name));

    let again = bench.create(&job).await;
    assert!(!bench.exists(&second).await, "one run must not have two containers");
    assert!(bench.exists(&again).await && bench.exists(&first).await);
    assert!(again.pid.ends_with(&format!(":{}", again.id)), "{}", again.pid);

    let container = bench.engine.api().inspect_container(&again.id, None).await.unwrap();
    let labels = container.config.unwrap().labels.unwrap();
    assert_eq!(labels["io.ferryman.flow-run-id"], job.attempt.flow_run_id.to_string());
    assert_eq!(
        (labels["io.ferryman.work-pool"].as_str(), labels["io.ferryman.worker"].as_str()),
        (job.attempt.work_pool.as_str(), "worker")
    );
    bench.clean_up().await;
}

#[tokio::test]
async fn a_container_that_ignores_the_request_is_killed_after_the_grace() {
    let bench = Bench::new().await;
    let running = bench.start(&bench.job("/probe sleep 600", json!({}))).await;
    // As the first process of its container the probe ignores SIGTERM.
    bench.launcher.kill(&running, Duration::from_secs(1)).await.unwrap();
    assert_eq!(bench.end(&running).await.0, exited(137));
    bench.launcher.kill(&running, Duration::from_secs(1)).await.unwrap();
    bench.clean_up().await;
}

#[tokio::test]
async fn auto_remove_keeps_the_exit_code_until_it_is_reported() {
    let bench = Bench::new().await;
    let job = bench.job("/probe exit 7", json!({"auto_remove": true}));
    let running = bench.start(&job).await;
    assert_eq!(bench.end(&running).await.0, exited(7));
    assert!(bench.exists(&running).await, "until its end is reported it is the only record of it");
    bench.launcher.tidy(&running).await.unwrap();
    assert!(!bench.exists(&running).await);
    bench.launcher.tidy(&running).await.unwrap();
    assert_eq!(bench.end(&running).await.0, Outcome::Vanished);
    let error = bench.launcher.kill(&running, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, LaunchError::NotFound { .. }), "{error}");
    bench.clean_up().await;
}

#[tokio::test]
async fn what_cannot_run_is_refused_and_leaves_nothing() {
    let bench = Bench::new().await;
    let absent = json!({"image": "ferryman-no-such-image:1"});
    let error = bench.launcher.create(&bench.job("/probe", absent)).await.unwrap_err();
    assert!(
        matches!(&error, LaunchError::Image { image, .. } if image == "ferryman-no-such-image:1"),
        "{error}"
    );

    let unknown = json!({"container_create_kwargs": {"shmsize": "1m"}});
    let error = bench.launcher.prepare(&bench.job("/probe", unknown), &Silent).await.unwrap_err();
    assert!(error.to_string().contains("shmsize"), "{error}");

    let network = json!({"networks": ["bridge", "ferryman-no-such-network"]});
    let error = bench.launcher.create(&bench.job("/probe", network)).await.unwrap_err();
    assert!(error.to_string().contains("ferryman-no-such-network"), "{error}");
    let (label, value) = bench.engine.run_label();
    assert!(bench.engine.containers_with(label, Some(value)).await.unwrap().is_empty());

    let unstartable = bench.create(&bench.job("/no/such/program", json!({}))).await;
    let error = bench.launcher.start(&unstartable).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    bench.launcher.discard(&unstartable).await.unwrap();
    bench.launcher.discard(&unstartable).await.unwrap();
    assert!(!bench.exists(&unstartable).await);
    bench.clean_up().await;
}

#[tokio::test]
async fn the_engine_enforces_the_limits_asked_for() {
    let bench = Bench::new().await;
    let options = json!({
        "mem_limit": "64m", "network_mode": "none", "volumes": ["/data"],
        "container_create_kwargs": {
            "shm_size": "32m", "ulimits": [{"name": "nofile", "soft": 100, "hard": 200}], "read_only": true,
            "tmpfs": {"/run": "size=1m"}, "cap_drop": ["ALL"], "pids_limit": 50, "user": "1000:1000",
        },
    });
    let created = bench.create(&bench.job("/probe exit 0", options)).await;
    let container = bench.engine.api().inspect_container(&created.id, None).await.unwrap();
    let host = container.host_config.unwrap();
    assert_eq!((host.memory, host.shm_size), (Some(64 << 20), Some(32 << 20)));
    assert_eq!((host.readonly_rootfs, host.pids_limit), (Some(true), Some(50)));
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.ulimits.unwrap().first().unwrap().hard, Some(200));
    assert_eq!(container.config.unwrap().user.as_deref(), Some("1000:1000"));
    bench.launcher.start(&created).await.unwrap();
    let Outcome::Exited { code: 0, memory, .. } = bench.end(&created).await.0 else {
        panic!("it did not end with 0")
    };
    assert_eq!(memory.limit, Some(64 << 20));
    bench.clean_up().await;
}

#[tokio::test]
async fn a_later_worker_finds_what_was_left_and_what_it_is_for() {
    let bench = Bench::new().await;
    let mut job = bench.job("/probe sleep 600", json!({}));
    job.base_env.insert("PREFECT_API_AUTH_STRING".to_owned(), "admin:hunter2".to_owned());
    job.env.insert("DSN".to_owned(), Some("postgres://hunter3".to_owned()));
    job.attempt.secret_env.push("DSN".to_owned());
    let created = bench.create(&job).await;
    let phase = async || {
        let later = DockerLauncher::connect(&|name| std::env::var(name).ok()).await.unwrap();
        assert_eq!(later.place(), bench.launcher.place());
        let found = later.list(&job.attempt.work_pool).await.unwrap();
        let [found] = found.as_slice() else { panic!("one container, not {found:?}") };
        assert_eq!((&found.attempt, &found.infrastructure), (&job.attempt, &created));
        found.phase
    };
    assert_eq!(phase().await, Phase::Created);
    bench.launcher.start(&created).await.unwrap();
    assert_eq!(phase().await, Phase::Running);
    let secrets = bench.launcher.secrets(&created, &job.attempt).await;
    let mut secrets: Vec<&str> = secrets.iter().map(ExposeSecret::expose_secret).collect();
    secrets.sort_unstable();
    assert_eq!(secrets, ["admin:hunter2", "postgres://hunter3"]);
    bench.launcher.kill(&created, Duration::ZERO).await.unwrap();
    assert_eq!(phase().await, Phase::Ended);
    assert!(bench.launcher.list("another pool").await.unwrap().is_empty());
    bench.clean_up().await;
}

#[tokio::test]
async fn the_hooks_of_an_image_run_in_a_container_like_the_one_that_died() {
    let bench = Bench::new().await;
    let without = bench.start(&bench.job("/probe exit 9", json!({}))).await;
    bench.end(&without).await;
    assert_eq!(bench.launcher.companion(&without, &["/probe", "env"]).await.unwrap(), None);

    let image = format!("{}:1", bench.engine.name("hooked"));
    let contents = Image::scratch()
        .file("/probe", probe())
        .bytes("/unique", image.clone(), 0o644)
        .label("io.ferryman.flow-run-hook", "true");
    bench.engine.build_image(&image, contents).await.unwrap();
    let mut job =
        bench.job("/probe exit 9", json!({"image": image, "mem_limit": "64m", "volumes": ["/data"]}));
    job.env.insert("GREETING".to_owned(), Some("hello".to_owned()));
    let died = bench.start(&job).await;
    bench.end(&died).await;
    let companion = bench.launcher.companion(&died, &["/probe", "env"]).await.unwrap().unwrap();
    let (outcome, output) = bench.end(&companion).await;
    assert!(matches!(outcome, Outcome::Exited { code: 0, .. }), "{outcome:?}");
    assert!(output.contains("GREETING=hello"), "{output}");
    let inspected = bench.engine.api().inspect_container(&companion.id, None).await.unwrap();
    assert_eq!(inspected.host_config.unwrap().memory, Some(64 << 20));
    let listed = bench.launcher.list(&job.attempt.work_pool).await.unwrap();
    assert!(listed.iter().all(|found| found.infrastructure != companion), "it is nobody's run");
    bench.launcher.discard(&companion).await.unwrap();
    assert!(!bench.exists(&companion).await && bench.exists(&died).await);
    bench.clean_up().await;
}
