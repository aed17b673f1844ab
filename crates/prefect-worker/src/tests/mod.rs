//! The worker on the wire: a real worker between a made-up server and a made-up launcher. One journal holds
//! what both were asked, in order.

mod fake_api;
mod fake_launcher;
mod restart;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prefect_client::settings::Inputs;
use prefect_client::{Client, Settings};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::options::Options;
use crate::shutdown::{OnShutdown, Shutdown};
use crate::status::RunPhase;
use crate::worker::Worker;
use fake_api::FakeApi;
use fake_launcher::FakeLauncher;

/// Far more than anything here takes, so that a fault ends in a failure.
const DEADLINE: Duration = Duration::from_mins(1);

/// What was asked of server and launcher, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal {
    entries: Arc<Mutex<Vec<String>>>,
    changed: Arc<tokio::sync::Notify>,
}

impl Journal {
    pub(super) fn write(&self, entry: impl Into<String>) {
        self.entries.lock().unwrap().push(entry.into());
        self.changed.notify_waiters();
    }

    fn all(&self) -> Vec<String> {
        self.entries.lock().unwrap().clone()
    }

    fn has(&self, part: &str) -> bool {
        self.all().iter().any(|entry| entry.contains(part))
    }

    async fn until(&self, part: &str) {
        let found = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.has(part) {
                    return;
                }
                changed.await;
            }
        };
        let found = tokio::time::timeout(DEADLINE, found).await;
        assert!(found.is_ok(), "{part:?} did not happen: {:#?}", self.all());
    }
}

struct Bench {
    journal: Journal,
    api: FakeApi,
    launcher: Arc<FakeLauncher>,
    settings: Settings,
    admin: crate::Admin,
}

struct Running {
    stop: Shutdown,
    worker: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.request(OnShutdown::Detach);
        tokio::time::timeout(DEADLINE, self.worker).await.expect("the worker did not stop").unwrap();
    }
}

impl Bench {
    async fn new() -> Self {
        let journal = Journal::default();
        let api = FakeApi::start(journal.clone()).await;
        let environment = [
            ("PREFECT_API_URL", api.url()),
            ("PREFECT_HOME", "/nonexistent".to_owned()),
            ("PREFECT_WORKER_QUERY_SECONDS", "0.05".to_owned()),
            ("PREFECT_WORKER_CANCELLATION_POLL_SECONDS", "1".to_owned()),
        ];
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let settings =
            Settings::resolve(&Inputs { environment, directory: PathBuf::from("/nonexistent") }).unwrap();
        let admin = crate::Admin::new("w", Client::new(&settings).unwrap());
        Self { launcher: Arc::new(FakeLauncher::new(journal.clone())), journal, api, settings, admin }
    }

    fn options(&self) -> Options {
        Options::new("pool".to_owned(), "w".to_owned(), &self.settings).unwrap()
    }

    async fn register(&self, options: Options) -> Result<Worker, Error> {
        let client = Client::new(&self.settings).unwrap();
        let launcher: Arc<FakeLauncher> = Arc::clone(&self.launcher);
        Worker::register(options, &self.settings, client, launcher, &self.admin).await
    }

    async fn run(&self, options: Options) -> Running {
        let worker = self.register(options).await.unwrap();
        let stop = Shutdown::new();
        Running { worker: tokio::spawn(worker.run(stop.clone())), stop }
    }
}

#[tokio::test]
async fn a_run_is_claimed_launched_and_its_crash_reported_in_this_order() {
    let bench = Bench::new().await;
    let run = bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.launcher.finish(3);
    bench.journal.until("tidy").await;
    worker.stop().await;
    let journal: Vec<String> =
        bench.journal.all().into_iter().map(|entry| entry.replace(&run.to_string(), "<run>")).collect();
    // Labels are given beside all of it.
    let (labels, journal): (Vec<_>, Vec<_>) =
        journal.into_iter().partition(|entry| entry.starts_with("label run"));
    assert!(labels.first().unwrap().contains(r#""ferryman.place":"here""#), "{labels:?}");
    insta::assert_json_snapshot!(journal, @r#"
    [
      "give the pool a template",
      "heartbeat w 30",
      "state PENDING Pending",
      "prepare blue-owl: prefect flow-run execute",
      "state PENDING Submitting",
      "create",
      "change run {\"infrastructure_pid\":\"fake:c\"}",
      "start",
      "read run",
      "state CRASHED Crashed Flow run infrastructure exited with non-zero status code 3. Process exited with an unexpected status code.",
      "tidy"
    ]
    "#);
}

#[tokio::test]
async fn the_server_is_told_again_until_it_listens() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.api.fail_next("CRASHED");
    bench.launcher.finish(1);
    bench.journal.until("refused: state CRASHED").await;
    bench.journal.until("general error").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_final_report_waits_for_a_server_behind_a_proxy_and_for_credentials() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.api.go_away(true);
    bench.launcher.finish(1);
    bench.journal.until("answered by a proxy").await;
    bench.api.demand_credentials(true);
    bench.api.go_away(false);
    bench.journal.until("unauthorized").await;
    bench.api.demand_credentials(false);
    bench.journal.until("general error").await;
    bench.journal.until("tidy").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_a_claim() {
    let bench = Bench::new().await;
    bench.api.lose_the_next_claim();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("answer lost: state PENDING Pending").await;
    bench.journal.until("start").await;
    bench.launcher.finish(3);
    bench.journal.until("CRASHED").await;
    worker.stop().await;
}

#[tokio::test]
async fn an_outage_of_the_engine_only_delays_a_launch() {
    let bench = Bench::new().await;
    bench.launcher.miss_the_engine_once();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("no engine").await;
    bench.journal.until("start").await;
    worker.stop().await;
    assert!(!bench.journal.has("CRASHED"), "{:#?}", bench.journal.all());
}

#[tokio::test]
async fn infrastructure_that_the_engine_has_spoiled_is_made_anew() {
    let bench = Bench::new().await;
    bench.launcher.spoil_once();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    worker.stop().await;
    let journal = bench.journal.all();
    let steps =
        journal.iter().map(String::as_str).filter(|step| ["create", "discard", "start"].contains(step));
    assert_eq!(steps.collect::<Vec<_>>(), ["create", "discard", "create", "start"], "{journal:#?}");
    assert!(!bench.journal.has("CRASHED"), "{journal:#?}");
}

#[tokio::test]
async fn a_run_that_ended_meanwhile_is_not_handed_back() {
    let bench = Bench::new().await;
    bench.launcher.hang_in_prepare();
    let run = bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("prepare").await;
    bench.api.end(run);
    worker.stop().await;
    assert!(
        bench.journal.has("read run") && !bench.journal.has("state SCHEDULED"),
        "{:#?}",
        bench.journal.all()
    );
}

#[tokio::test]
async fn a_run_of_a_deleted_deployment_is_cancelled() {
    let bench = Bench::new().await;
    bench.api.delete_deployment();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("no longer exists, cancelled run. force").await;
    worker.stop().await;
    assert!(!bench.journal.has("prepare"));
}

#[tokio::test]
async fn a_run_that_another_worker_got_is_left_alone() {
    let bench = Bench::new().await;
    bench.api.reject_claims();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("rejected: state PENDING Pending").await;
    worker.stop().await;
    assert!(!bench.journal.has("prepare") && !bench.journal.has("CRASHED"), "{:#?}", bench.journal.all());
}

#[tokio::test]
async fn a_wrong_job_configuration_crashes_the_run_before_anything_is_made() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({"labels": ["no", "object"]}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("CRASHED").await;
    worker.stop().await;
    assert!(bench.journal.has("labels must be an object"), "{:#?}", bench.journal.all());
    assert!(!bench.journal.has("create"));
}

#[tokio::test]
async fn infrastructure_that_does_not_start_is_discarded() {
    let bench = Bench::new().await;
    bench.launcher.refuse_to_start();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("CRASHED").await;
    worker.stop().await;
    assert!(bench.journal.has("discard"));
    assert!(bench.journal.has("Failed to submit flow run to infrastructure: APIError: failed to start: no"));
}

#[tokio::test]
async fn a_worker_that_stops_hands_back_what_has_not_started() {
    let bench = Bench::new().await;
    bench.launcher.hang_in_prepare();
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("prepare").await;
    worker.stop().await;
    assert!(bench.journal.has("state SCHEDULED"), "{:#?}", bench.journal.all());
    assert!(!bench.journal.has("create"));
}

#[tokio::test]
async fn a_worker_that_stops_leaves_running_containers_alone() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    worker.stop().await;
    for entry in ["kill", "discard", "CRASHED", "CANCELLED", "SCHEDULED"] {
        assert!(!bench.journal.has(entry), "{entry}: {:#?}", bench.journal.all());
    }
}

#[tokio::test]
async fn cancelling_a_run_that_never_reported_kills_its_container() {
    let bench = Bench::new().await;
    let run = bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.api.cancel(run);
    bench.journal.until("Flow run cancelled by worker while pending. force").await;
    worker.stop().await;
    assert!(bench.journal.has("kill"));
}

#[tokio::test]
async fn cancelling_a_run_before_it_has_infrastructure_ends_the_preparation() {
    let bench = Bench::new().await;
    bench.launcher.hang_in_prepare();
    let run = bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("prepare").await;
    bench.api.cancel(run);
    bench.journal.until("no infrastructure found). force").await;
    worker.stop().await;
    assert!(!bench.journal.has("create"));
}

#[tokio::test]
async fn a_run_that_reported_itself_running_is_cancelled_from_within() {
    let bench = Bench::new().await;
    let run = bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.api.report_running(run);
    bench.api.cancel(run);
    bench.journal.until("asked who is cancelling").await;
    bench.journal.until("read run").await;
    bench.launcher.finish(0);
    bench.journal.until("its infrastructure has ended. force").await;
    worker.stop().await;
    assert!(!bench.journal.has("kill"));
}

#[tokio::test]
async fn the_limit_bounds_the_runs_in_flight() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    bench.api.schedule(json!({}));
    let worker = bench.run(Options { limit: Some(1), ..bench.options() }).await;
    bench.journal.until("start").await;
    bench.api.polls(3).await;
    let starts = || bench.journal.all().iter().filter(|entry| entry.starts_with("start")).count();
    assert_eq!(starts(), 1);
    bench.launcher.finish(1);
    bench.journal.until("CRASHED").await;
    bench.launcher.started(2).await;
    worker.stop().await;
}

#[tokio::test]
async fn run_once_ends_when_the_runs_of_one_poll_have_ended() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    bench.launcher.finish(1);
    let running = bench.run(Options { run_once: true, ..bench.options() }).await;
    tokio::time::timeout(DEADLINE, running.worker).await.expect("the worker did not end").unwrap();
    assert!(bench.journal.has("CRASHED"));
}

#[tokio::test]
async fn an_unknown_pool_is_created_with_the_launchers_template_or_refused() {
    let bench = Bench::new().await;
    bench.api.delete_pool();
    let error = bench.register(Options { create_pool: false, ..bench.options() }).await.err().unwrap();
    assert!(matches!(error, Error::UnknownPool { .. }), "{error}");
    assert_eq!(error.exit_code(), 64);
    assert!(bench.journal.all().is_empty(), "{:#?}", bench.journal.all());

    drop(bench.register(bench.options()).await.unwrap());
    assert!(bench.journal.has("create pool docker"));
    assert!(bench.journal.has("heartbeat w 30"));
}

#[tokio::test]
async fn pools_that_cannot_be_served_are_refused_and_not_touched() {
    for (pool, part) in [
        (json!({"type": "process"}), "it is of type \"process\", not \"docker\""),
        (
            json!({"base_job_template": {"job_configuration": {"image": "{{ x }}"}, "variables": {"properties": {}}}}),
            "the base job template of the work pool \"pool\"",
        ),
    ] {
        let bench = Bench::new().await;
        bench.api.change_pool(pool);
        let error = bench.register(bench.options()).await.err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), 64);
        assert!(bench.journal.all().is_empty(), "{:#?}", bench.journal.all());
    }
}

#[tokio::test]
async fn wrong_credentials_are_a_configuration_error() {
    let bench = Bench::new().await;
    bench.api.demand_credentials(true);
    let error = bench.register(bench.options()).await.err().unwrap();
    assert_eq!(error.exit_code(), 64);
    assert!(error.hint().unwrap().contains("PREFECT_API_AUTH_STRING"));
}

#[tokio::test]
async fn a_server_of_another_major_version_is_refused_unless_nobody_compares() {
    let bench = Bench::new().await;
    bench.api.set_version("4.0.1");
    let error = bench.register(bench.options()).await.err().unwrap();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("Prefect 4.0.1"), "{error}");
    assert!(error.hint().unwrap().contains("PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED"));
    assert!(bench.journal.all().is_empty(), "{:#?}", bench.journal.all());

    // One that is only not known is served.
    for (version, compare) in [("3.99.0", true), ("4.0.2", false)] {
        bench.api.set_version(version);
        let mut options = bench.options();
        options.compare_versions = compare;
        bench.register(options).await.unwrap();
        assert_eq!(bench.admin.status.snapshot().server_version.as_deref(), Some(version));
    }
}

#[tokio::test]
async fn every_loop_goes_round_and_a_worker_that_drains_is_live() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.admin.status.set_state(crate::status::State::Running);
    bench.journal.until("start").await;
    let beaten = async || {
        loop {
            let loops = bench.admin.status.snapshot().loops;
            let silent = loops.iter().filter(|entry| entry.last_beat_age_seconds.is_none());
            if silent.map(|entry| entry.name.as_str()).eq(["reconciler of \"pool\""]) && loops.len() == 5 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, beaten()).await.expect("some loop does not beat");
    assert!(bench.admin.health.live().ok, "{:?}", bench.admin.health.live());

    worker.stop.request(OnShutdown::Drain);
    bench.admin.status.set_state(crate::status::State::Draining);
    let drained = async {
        while bench.admin.status.snapshot().loops.iter().any(|entry| entry.name.starts_with("poller")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, drained).await.expect("the poller goes on");
    assert!(bench.admin.health.live().ok, "{:?}", bench.admin.health.live());
    bench.launcher.finish(0);
    tokio::time::timeout(DEADLINE, worker.worker).await.expect("the worker did not drain").unwrap();
}

#[tokio::test]
async fn every_call_that_fails_is_counted() {
    let bench = Bench::new().await;
    let worker = bench.run(bench.options()).await;
    bench.journal.until("heartbeat").await;
    bench.api.fail_next("PENDING");
    bench.api.schedule(json!({}));
    let counted = async {
        let series = "prefect_worker_api_errors_total{worker=\"w\",kind=\"server\"} ";
        loop {
            let text = bench.admin.metrics.text().unwrap();
            let count = text.lines().find_map(|line| line.strip_prefix(series)).unwrap();
            if count != "0" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, counted).await.expect("the failed claim is in no figure");
    worker.stop().await;
}

#[tokio::test]
async fn figures_and_status_agree_with_what_ran() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    let running = async {
        while bench.admin.status.snapshot().pools[0].runs.iter().all(|run| run.phase != RunPhase::Running) {
            bench.admin.status.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, running).await.expect("the run is not on the board");
    let status = bench.admin.status.snapshot();
    assert_eq!(status.server_version.as_deref(), Some("3.7.2"));
    assert_eq!(status.engine.unwrap().version, "1");
    let text = bench.admin.metrics.text().unwrap();
    assert!(text.contains("prefect_worker_runs{worker=\"w\",pool=\"pool\",phase=\"running\"} 1"), "{text}");
    bench.launcher.finish(3);
    bench.journal.until("tidy").await;
    worker.stop().await;

    let text = bench.admin.metrics.text().unwrap();
    let value = |series: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("prefect_worker_{series} ")));
        let value = line.unwrap_or_else(|| panic!("{series} is missing in {text}"));
        value.trim_end_matches(".0").parse().unwrap()
    };
    let pool = "worker=\"w\",pool=\"pool\"";
    assert_eq!(value(&format!("claims_total{{{pool},outcome=\"accepted\"}}")), 1);
    assert_eq!(value(&format!("ends_total{{{pool},cause=\"failed\"}}")), 1);
    assert_eq!(value(&format!("claim_latency_seconds_count{{{pool}}}")), 1);
    assert_eq!(value(&format!("start_latency_seconds_count{{{pool}}}")), 1);
    assert_eq!(value(&format!("slots_used{{{pool}}}")), 0);
    assert!(value(&format!("polls_total{{{pool},outcome=\"succeeded\"}}")) >= 1);
}
