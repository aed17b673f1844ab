//! Job variables of our own, looked at from inside the containers of the real engine.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod bench;

use bench::{Bench, Silent, exited};
use prefect_worker::launcher::Launcher;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

/// What the probe tells from inside a container of this configuration.
async fn facts(bench: &Bench, configuration: Value) -> String {
    let (outcome, output) = bench.end(&bench.start(&bench.job("/probe facts", configuration)).await).await;
    assert_eq!(outcome, exited(0), "{output}");
    output
}

fn assert_facts(output: &str, wanted: &[&str]) {
    for line in wanted {
        assert!(output.lines().any(|found| found == *line), "{line:?} is missing in {output}");
    }
}

#[tokio::test]
async fn limits_users_and_names_hold_inside() {
    let bench = Bench::new().await;
    let output = facts(
        &bench,
        json!({
            "shm_size": "8m", "ulimits": ["nofile=100:200"], "user": "1234:99", "group_add": ["44"], "working_dir": "/work",
            "hostname": "probe-host", "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "pids_limit": 77,
            "cpus": 0.5, "network_mode": "bridge", "extra_hosts": ["db.example:10.9.8.7"], "dns": ["10.9.8.6"],
            "read_only": true, "tmpfs": ["/scratch:size=1m"],
        }),
    )
    .await;
    assert_facts(
        &output,
        &[
            "status Uid: 1234 1234 1234 1234",
            "status Groups: 44 99",
            "status CapEff: 0000000000000000",
            "status NoNewPrivs: 1",
            "limit Max open files 100 200 files",
            "directory /work",
            "host name probe-host",
            "first process probe",
            "pid 1",
            "hosts 10.9.8.7 db.example",
            "resolv nameserver 10.9.8.6",
            "root writable false",
            "pids 77",
            "device false",
        ],
    );
    let mounts: Vec<&str> = output.lines().filter(|line| line.starts_with("mount ")).collect();
    let mount =
        |path: &str| mounts.iter().find(|line| line.split(' ').nth(2) == Some(path)).copied().unwrap_or("");
    assert!(mount("/dev/shm").contains("size=8192k"), "{mounts:?}");
    assert!(mount("/scratch").contains("tmpfs") && mount("/scratch").contains("size=1024k"), "{mounts:?}");
    assert!(mount("/").contains(" ro,"), "{mounts:?}");
    assert!(output.lines().any(|line| line == "cpus 50000" || line == "cpus 50000 100000"), "{output}");
    bench.clean_up().await;
}

#[tokio::test]
async fn processes_mounts_and_devices_are_as_asked() {
    let bench = Bench::new().await;
    let host = tempfile::tempdir().unwrap();
    let configuration = json!({
        "init": true, "entrypoint": ["/probe"], "cap_add": ["sys_ptrace"], "cap_drop": ["ALL"], "devices": ["/dev/fuse"],
        "mounts": [
            {"type": "bind", "source": host.path(), "target": "/data", "readonly": true},
            "type=tmpfs,target=/vol,tmpfs-size=1m",
        ],
        "log_driver": "json-file", "log_options": {"max-size": "1m"}, "platform": "linux/amd64", "pids_limit": 0,
    });
    // The entrypoint is the program; the command has its arguments.
    let (outcome, output) = bench.end(&bench.start(&bench.job("facts", configuration)).await).await;
    assert_eq!(outcome, exited(0), "{output}");
    assert_facts(
        &output,
        &["arguments /probe facts", "device true", "root writable true", "status CapEff: 0000000000080000"],
    );
    assert!(!output.contains("\npid 1\n") && output.contains("\nfirst process docker-init\n"), "{output}");
    let mount = |path: &str| {
        output.lines().find(|line| line.starts_with("mount ") && line.contains(path)).unwrap_or("")
    };
    assert!(mount(" /data ").contains(" ro,"), "{output}");
    assert!(mount(" /vol ").contains("size=1024k"), "{output}");
    bench.clean_up().await;
}

#[tokio::test]
async fn what_only_the_engine_sees_is_in_the_body_it_gets() {
    let bench = Bench::new().await;
    let configuration = json!({"stop_signal": "SIGINT", "ipc_mode": "private", "log_driver": "local"});
    let created = bench.create(&bench.job("/probe exit 0", configuration)).await;
    let container = bench.engine.inspect(&created.id).await.unwrap();
    assert_eq!(container.config.unwrap().stop_signal.as_deref(), Some("SIGINT"));
    let host = container.host_config.unwrap();
    assert_eq!(host.ipc_mode.as_deref(), Some("private"));
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("local"));

    let twice = json!({"shm_size": "1m", "container_create_kwargs": {"shm_size": "2m"}});
    let error = bench.launcher.prepare(&bench.job("/probe exit 0", twice), &Silent).await.unwrap_err();
    assert!(error.to_string().contains("shm_size and container_create_kwargs.shm_size"), "{error}");
    bench.clean_up().await;
}

const CANARY: &str = "canary-5a0f-in-a-file";

#[tokio::test]
async fn secrets_in_files_are_read_inside_and_seen_nowhere() {
    let bench = Bench::new().await;
    for configuration in [
        json!({}),
        json!({"user": "1234"}),
        json!({"container_create_kwargs": {"user": "1234:5"}}),
        json!({"read_only": true, "user": "1234"}),
        json!({"read_only": true, "tmpfs": ["/run:size=1m"]}),
        json!({"volumes": ["/run"]}),
    ] {
        let mut job = bench.job(
            "/probe cat /run/secrets/S3_SECRET_KEY /run/secrets/PREFECT_API_AUTH_STRING",
            configuration.clone(),
        );
        job.configuration.insert(
            "secret_files".to_owned(),
            json!({"S3_SECRET_KEY": CANARY, "MULTI": "first-line\nsecond-line\n"}),
        );
        job.configuration.insert("api_credentials_as_files".to_owned(), json!(true));
        job.base_env.insert("PREFECT_API_AUTH_STRING".to_owned(), format!("admin:{CANARY}"));
        let created = bench.create(&job).await;

        let inspected = bench.engine.inspect(&created.id).await.unwrap();
        let text = json!(inspected).to_string();
        assert!(!text.contains(CANARY) && !text.contains("second-line"), "{configuration}: {text}");
        assert!(text.contains("S3_SECRET_KEY_FILE=/run/secrets/S3_SECRET_KEY"), "{text}");
        assert!(text.contains("PREFECT_API_AUTH_STRING_FILE=/run/secrets/PREFECT_API_AUTH_STRING"), "{text}");
        assert!(!format!("{job:?} {created:?}").contains(CANARY));

        let secrets = async || {
            let secrets = bench.launcher.secrets(&created, &job.attempt).await;
            let mut secrets: Vec<String> = secrets.iter().map(|s| s.expose_secret().to_owned()).collect();
            secrets.sort_unstable();
            secrets
        };
        let all =
            [format!("admin:{CANARY}"), CANARY.to_owned(), "first-line".to_owned(), "second-line".to_owned()];
        assert_eq!(secrets().await, all, "{configuration}, before the start");
        bench.launcher.start(&created).await.unwrap();
        let (outcome, output) = bench.end(&created).await;
        assert_eq!(outcome, exited(0));
        let wanted = format!(
            "/run/secrets/S3_SECRET_KEY: {CANARY}\n/run/secrets/PREFECT_API_AUTH_STRING: admin:{CANARY}\n"
        );
        assert_eq!(output, wanted, "{configuration}");
        assert_eq!(secrets().await, all, "{configuration}, after the end");
        bench.launcher.discard(&created).await.unwrap();
    }
    bench.clean_up().await;
}

#[tokio::test]
async fn nobody_but_the_containers_user_reads_its_secrets() {
    let bench = Bench::new().await;
    // The capability to read everything goes with ALL.
    let configuration = json!({"user": "1234", "secret_files": {"KEY": CANARY}});
    let created = bench.create(&bench.job("/probe cat /run/secrets/KEY", configuration)).await;
    let options =
        bollard::query_parameters::DownloadFromContainerOptions { path: "/run/secrets/KEY".to_owned() };
    let mut pieces = Box::pin(bench.engine.api().download_from_container(&created.id, Some(options)));
    let mut archive = Vec::new();
    while let Some(piece) = futures_util::StreamExt::next(&mut pieces).await {
        archive.extend_from_slice(&piece.unwrap());
    }
    let mut archive = tar::Archive::new(archive.as_slice());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.header().uid().unwrap(), entry.header().mode().unwrap() & 0o777), (1234, 0o400));

    let stranger = json!({"user": "nobody-knows-me", "secret_files": {"KEY": CANARY}});
    let error = bench.launcher.create(&bench.job("/probe exit 0", stranger)).await.unwrap_err().to_string();
    assert!(
        error.contains("nobody-knows-me")
            && error.contains("set user to a number")
            && !error.contains(CANARY),
        "{error}"
    );
    let (label, value) = bench.engine.run_label();
    assert_eq!(
        bench.engine.containers_with(label, Some(value)).await.unwrap(),
        [created.id],
        "nothing is left behind"
    );
    bench.clean_up().await;
}
