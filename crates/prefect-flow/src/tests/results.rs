//! Results that are kept, and tasks that need not be run because of that.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::fake::Fake;
use super::{Bench, Greeting, greet};
use crate::engine::End;
use crate::error::BoxError;
use crate::{Cache, Flow};

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("ferryman-results-{}", uuid::Uuid::new_v4())))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It was never made if nothing was stored.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn bench(directory: &Directory) -> Bench {
    let storage = directory.0.clone();
    Bench::on(Fake::start().await, |options| options.local_storage = storage)
}

/// The states of task runs, each with the file name that its data refers to.
fn task_states(bench: &Bench) -> Vec<(String, Option<String>)> {
    let inner = bench.fake.lock();
    let about_tasks = inner.events.iter().filter_map(|event| {
        let name = event["event"].as_str()?.strip_prefix("prefect.task-run.")?.to_owned();
        let key = event["payload"]["validated_state"]["data"]["storage_key"].as_str();
        Some((name, key.map(|key| key.rsplit('/').next().unwrap_or_default().to_owned())))
    });
    about_tasks.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_tasks_are_taken_by_equal_runs() {
    let directory = Directory::new();
    let bench = bench(&directory).await;
    let calls = Arc::new(AtomicU32::new(0));
    let shared = Arc::clone(&calls);
    let flow = greet(move |ctx, _| {
        let calls = Arc::clone(&shared);
        async move {
            for _ in 0..2 {
                let task = ctx.task("count").cached(Cache::key("counted"));
                let counted =
                    task.run(|_| async { Ok::<_, BoxError>(calls.fetch_add(1, Ordering::Relaxed) + 7) });
                assert_eq!(counted.await?.into_value(), 7);
            }
            Ok(())
        }
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(calls.load(Ordering::Relaxed), 1, "the second run was not needed");
    let states = task_states(&bench);
    let last: Vec<_> = states.iter().filter(|(_, key)| key.is_some()).collect();
    let counted = || Some("counted".to_owned());
    assert_eq!(last, [&("Completed".to_owned(), counted()), &("Cached".to_owned(), counted())]);
    let record: Value = serde_json::from_slice(&std::fs::read(directory.0.join("counted")).unwrap()).unwrap();
    assert_eq!(record["result"], json!("7"));
    assert_eq!(record["metadata"]["serializer"]["type"], "json");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_are_expired_broken_or_of_others_do_not_count() {
    let directory = Directory::new();
    let bench = bench(&directory).await;
    std::fs::create_dir_all(&directory.0).unwrap();
    let record = |expiration: Value, serializer: &str, result: &str| {
        json!({"metadata": {"storage_key": "k", "expiration": expiration, "serializer": {"type": serializer},
            "prefect_version": "3.7.2", "storage_block_id": null}, "result": result})
        .to_string()
    };
    let files = [
        ("expired", record(json!("2020-01-01T00:00:00Z"), "json", "1")),
        ("pickled", record(json!(null), "pickle", "gASVBAAAAAAAAABLAS4=")),
        ("of-another-form", record(json!(null), "json", "[1]")),
        ("broken", "no record".to_owned()),
    ];
    for (name, content) in &files {
        std::fs::write(directory.0.join(name), content).unwrap();
    }
    let flow = greet(|ctx, _| async move {
        for name in ["expired", "pickled", "of-another-form", "broken", "../outside"] {
            let task = ctx.task(name).cached(Cache::key(name));
            assert_eq!(task.run(|_| async { Ok::<_, BoxError>(2) }).await?.into_value(), 2, "{name}");
        }
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    let states = task_states(&bench);
    assert!(states.iter().all(|(name, _)| name != "Cached"), "{states:?}");
    assert_eq!(states.iter().filter(|(_, key)| key.is_some()).count(), 4, "all but the one outside are kept");
    let lines = bench.fake.lock().lines();
    assert!(
        lines.iter().any(|line| line.starts_with("40 The result was not persisted: the key '../outside'"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_subflows_are_known_when_the_parent_is_run_again() {
    let directory = Directory::new();
    let bench = bench(&directory).await;
    let calls = Arc::new(AtomicU32::new(0));
    let shared = Arc::clone(&calls);
    let flow = greet(move |ctx, _| {
        let calls = Arc::clone(&shared);
        async move {
            let part = Flow::new("part", move |_, _: Greeting| {
                let count = calls.fetch_add(1, Ordering::Relaxed) + 7;
                async move { Ok::<_, BoxError>(count) }
            });
            let part = ctx.subflow(&part.persist_result(), Greeting { name: "you".to_owned(), count: 1 });
            assert_eq!(part.await?.into_value(), 7);
            if ctx.attempt() == 1 { Err("broken".into()) } else { Ok::<_, BoxError>(()) }
        }
    })
    .retries(1, Duration::ZERO);
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert_eq!(calls.load(Ordering::Relaxed), 1, "the part was not run again");
}

#[tokio::test(flavor = "multi_thread")]
async fn are_where_the_block_of_the_server_says() {
    let directory = Directory::new();
    let bench = Bench::new().await;
    {
        let mut inner = bench.fake.lock();
        let path = directory.0.display().to_string();
        inner.blocks.insert("local-file-system/kept".to_owned(), json!({"basepath": path}));
        inner.default_storage = Some("local-file-system/kept".to_owned());
    }
    let flow = greet(|ctx, _| async move {
        for _ in 0..2 {
            let task = ctx.task("count").cached(Cache::key("counted"));
            task.run(|_| async { Ok::<_, BoxError>(7) }).await?;
        }
        Ok(())
    });
    assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
    assert!(directory.0.join("counted").is_file());
    let inner = bench.fake.lock();
    assert_eq!(inner.calls_to("GET", "/block_documents/").len(), 1, "opened once");
    let data = inner.events.iter().map(|event| &event["payload"]["validated_state"]["data"]);
    let stored: Vec<_> = data.filter(|data| data["storage_key"].is_string()).collect();
    assert_eq!(stored.len(), 2);
    assert!(
        stored.iter().all(|data| data["storage_key"] == "counted" && data["storage_block_id"].is_string())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn that_cannot_be_kept_fail_nothing() {
    for (block, why) in [
        ("local-file-system/none", "the Prefect server has none of that name"),
        ("gcs-bucket/ours", "of type 'gcs-bucket': this program knows 'local-file-system'"),
    ] {
        let bench = Bench::with(|options| options.storage_block = Some(block.parse().unwrap())).await;
        bench.fake.lock().blocks.insert("gcs-bucket/ours".to_owned(), json!({}));
        let flow = greet(|ctx, _| async move {
            ctx.task("count").persist_result().run(|_| async { Ok::<_, BoxError>(7) }).await?;
            Ok(())
        });
        assert!(matches!(bench.execute(flow).await.unwrap(), End::Completed(_)));
        let lines = bench.fake.lock().lines();
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("40 The result was not persisted") && line.contains(why)),
            "{lines:?}"
        );
    }
}
