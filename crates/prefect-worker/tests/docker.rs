//! The Docker launcher against the real engine.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod bench;
mod conformance;

use async_trait::async_trait;
use bench::{Bench, Silent, exited, probe};
use conformance::conformance_suite;
use prefect_worker::launcher::{DockerLauncher, Job, LaunchError, Launcher, Outcome};
use serde_json::json;
use testkit::docker::Image;

#[async_trait(?Send)]
impl conformance::Bench for Bench {
    fn launcher(&self) -> &dyn Launcher {
        &self.launcher
    }

    async fn later(&self) -> Box<dyn Launcher> {
        Box::new(DockerLauncher::connect(&|name| std::env::var(name).ok()).await.unwrap())
    }

    fn job(&self, request: &str) -> Job {
        Self::job(self, &format!("/probe {request}"), json!({"auto_remove": true}))
    }

    fn impossible(&self) -> (Job, &'static str) {
        (Self::job(self, "/probe exit 0", json!({"container_create_kwargs": {"shmsize": "1m"}})), "shmsize")
    }
}

conformance_suite!(crate::Bench);

#[tokio::test]
async fn a_container_stays_unless_its_removal_was_asked_for() {
    let bench = Bench::new().await;
    let failing = bench.start(&bench.job("/probe exit 3", json!({}))).await;
    assert_eq!(bench.end(&failing).await.0, exited(3));
    bench.launcher.tidy(&failing).await.unwrap();
    assert_eq!(bench.end(&failing).await.0, exited(3));

    let removed = bench.start(&bench.job("/probe exit 3", json!({"auto_remove": true}))).await;
    assert_eq!(bench.end(&removed).await.0, exited(3));
    bench.launcher.tidy(&removed).await.unwrap();
    assert!(!bench.exists(&removed).await);
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
