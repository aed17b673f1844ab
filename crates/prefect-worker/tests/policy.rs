//! A policy on the real engine: what it forbids is never made.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod bench;

use std::process::Command;

use bench::{Bench, Silent, exited};
use prefect_worker::launcher::{DockerLauncher, LaunchError, Launcher};
use prefect_worker::policy::Policy;
use serde_json::json;

async fn under(policy: &str) -> Bench {
    let mut bench = Bench::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    std::fs::write(&file, policy).unwrap();
    let launcher = DockerLauncher::connect(&|name| std::env::var(name).ok()).await.unwrap();
    bench.launcher = launcher.with_policy(Policy::load(&file).unwrap());
    bench
}

fn rule(error: LaunchError) -> String {
    assert!(error.to_string().contains("the policy of this worker forbids it"), "{error}");
    match error {
        LaunchError::Forbidden { rule, .. } => rule,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_forbidden_is_told_and_no_container_is_made() {
    let bench = under(
        "images.allow = ['**']\nnetwork.modes = ['none']\nsecurity.root = true\n[limits]\nmemory = '64m'\ndefault_memory = '32m'",
    )
    .await;
    for (wanted, configuration) in [
        ("security.privileged", json!({"privileged": true})),
        ("mounts.bind", json!({"volumes": ["/var/run/docker.sock:/s"]})),
        (
            "mounts.bind",
            json!({"container_create_kwargs": {"mounts": [{"Type": "bind", "Source": "/", "Target": "/h"}]}}),
        ),
        ("security.pid_modes", json!({"container_create_kwargs": {"pid_mode": "host"}})),
        ("network.modes", json!({"network_mode": "host"})),
        ("devices.gpus", json!({"gpus": "all"})),
        ("limits.memory", json!({"mem_limit": "65m"})),
    ] {
        let mut all = json!({"network_mode": "none"});
        all.as_object_mut().unwrap().extend(configuration.as_object().unwrap().clone());
        let job = bench.job("/probe exit 0", all);
        assert_eq!(rule(bench.launcher.prepare(&job, &Silent).await.unwrap_err()), wanted, "{configuration}");
        assert_eq!(rule(bench.launcher.create(&job).await.unwrap_err()), wanted, "{configuration}");
    }
    let (label, value) = bench.engine.run_label();
    assert!(bench.engine.containers_with(label, Some(value)).await.unwrap().is_empty());

    let allowed = bench.start(&bench.job("/probe exit 0", json!({"network_mode": "none"}))).await;
    let host = bench.engine.inspect(&allowed.id).await.unwrap().host_config.unwrap();
    assert_eq!(host.memory, Some(32 << 20), "the limit that it did not name");
    bench.clean_up().await;
}

#[tokio::test]
async fn an_image_that_runs_as_root_is_seen_before_its_container_is_made() {
    let bench = under("images.allow = ['**']\nnetwork.modes = ['none']").await;
    let as_root = bench.job("/probe exit 0", json!({"network_mode": "none"}));
    // The image may not be there yet when a job is prepared.
    bench.launcher.prepare(&as_root, &Silent).await.unwrap();
    assert_eq!(rule(bench.launcher.create(&as_root).await.unwrap_err()), "security.root");
    let (label, value) = bench.engine.run_label();
    assert!(bench.engine.containers_with(label, Some(value)).await.unwrap().is_empty());

    let other = bench.job("/probe exit 0", json!({"network_mode": "none", "user": "1234"}));
    assert_eq!(bench.end(&bench.start(&other).await).await.0, exited(0));
    bench.clean_up().await;
}

#[test]
fn a_worker_does_not_start_without_the_policy_it_is_told_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("policy.toml");
    std::fs::write(&wrong, "[images]\nalow = ['**']\n").unwrap();
    for (path, part) in [(wrong.as_path(), "did you mean allow?"), (&folder.path().join("absent"), "absent")]
    {
        for by_flag in [true, false] {
            let mut worker = Command::new(env!("CARGO_BIN_EXE_prefect-worker"));
            worker.args(["start", "--pool", "p"]).env("PREFECT_API_URL", "http://127.0.0.1:9/api");
            if by_flag {
                worker.arg("--policy").arg(path);
            } else {
                worker.env("PREFECT_WORKER_POLICY_FILE", path);
            }
            let output = worker.output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{text}");
            assert!(text.contains(part) && text.contains("docs/guides/policy.md"), "{text}");
        }
    }
}
