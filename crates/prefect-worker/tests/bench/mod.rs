//! What the tests of the Docker launcher share: an engine, an image with the probe, jobs.

#![expect(clippy::expect_used, reason = "helpers of tests fail like tests")]
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses its part, some use all")]

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use prefect_worker::launcher::{
    Attempt, DockerLauncher, Infrastructure, Job, Launcher, Memory, Notes, Outcome, OutputSink,
};
use serde_json::{Map, Value, json};
use testkit::docker::{Engine, Image};
use tokio::sync::mpsc;

/// Far more than anything here takes, so that a fault ends in a failure.
const DEADLINE: Duration = Duration::from_mins(1);

pub(crate) struct Silent;

impl Notes for Silent {
    fn note(&self, _: &str) {}
}

pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) launcher: DockerLauncher,
    pub(crate) image: String,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let engine = Engine::connect().await.expect("these tests need a Docker engine");
        let image = format!("{}:1", engine.name("probe"));
        // The engine shares the steps of equal builds, and one test's clean-up would pull them from under another's
        // build: no two images may be equal.
        let contents = Image::scratch().file("/probe", probe()).bytes("/unique", image.clone(), 0o644);
        engine.build_image(&image, contents).await.unwrap();
        let launcher = DockerLauncher::connect(&|name| std::env::var(name).ok()).await.unwrap();
        Self { engine, launcher, image }
    }

    pub(crate) fn job(&self, command: &str, configuration: Value) -> Job {
        let attempt = Attempt::new(FlowRunId::generate(), self.engine.name("pool"), "worker");
        let mut job = Job::new(attempt, self.engine.name("run"), command);
        let (label, value) = self.engine.run_label();
        job.labels.insert(label.to_owned(), value.to_owned());
        let mut all = Map::from_iter([
            ("image".to_owned(), json!(self.image)),
            ("image_pull_policy".to_owned(), json!("Never")),
        ]);
        if let Value::Object(configuration) = configuration {
            all.extend(configuration);
        }
        job.configuration = all;
        job
    }

    pub(crate) async fn create(&self, job: &Job) -> Infrastructure {
        self.launcher.prepare(job, &Silent).await.unwrap();
        self.launcher.create(job).await.unwrap()
    }

    pub(crate) async fn start(&self, job: &Job) -> Infrastructure {
        let infrastructure = self.create(job).await;
        self.launcher.start(&infrastructure).await.unwrap();
        infrastructure
    }

    /// Waits for the end; gives the output too.
    pub(crate) async fn end(&self, infrastructure: &Infrastructure) -> (Outcome, String) {
        self.end_after(infrastructure, None).await
    }

    /// Waits for the end; gives the output after a moment.
    pub(crate) async fn end_after(
        &self,
        infrastructure: &Infrastructure,
        after: Option<Timestamp>,
    ) -> (Outcome, String) {
        let (sink, mut pieces) = mpsc::channel(64);
        let output = OutputSink { pieces: sink, after };
        let wait = tokio::time::timeout(DEADLINE, self.launcher.wait(infrastructure, Some(output)));
        let collect = async {
            let mut output = Vec::new();
            while let Some(piece) = pieces.recv().await {
                output.extend(piece.bytes);
            }
            String::from_utf8(output).unwrap()
        };
        let (outcome, output) = tokio::join!(wait, collect);
        (outcome.expect("the container did not end"), output)
    }

    pub(crate) async fn exists(&self, infrastructure: &Infrastructure) -> bool {
        self.engine.api().inspect_container(&infrastructure.id, None).await.is_ok()
    }

    pub(crate) async fn clean_up(self) {
        self.engine.clean_up().await.unwrap();
    }
}

/// The program inside the test's containers: an example of this crate, built with its tests.
pub(crate) fn probe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let probe = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/container_probe");
    assert!(probe.exists(), "{} is not built: cargo build --examples -p prefect-worker", probe.display());
    probe
}

pub(crate) fn exited(code: i64) -> Outcome {
    Outcome::Exited { code, out_of_memory: false, error: None, memory: Memory::default() }
}
