//! What a worker does with what a former one has left, and how it treats runs beyond their launch.

use serde_json::json;
use uuid::Uuid;

use super::Bench;
use crate::claim::Fingerprint;
use crate::launcher::Phase;
use crate::shutdown::OnShutdown;

fn claim_of(worker: &str) -> Uuid {
    Fingerprint::of("pool", worker).claim()
}

#[tokio::test]
async fn running_infrastructure_is_adopted_and_its_end_reported() {
    let bench = Bench::new().await;
    let claim = claim_of("w");
    let run = bench.api.claimed("w", claim, "RUNNING");
    bench.launcher.leave(run, "w", Phase::Running, claim);
    let worker = bench.run(bench.options()).await;
    bench.api.polls(1).await;
    assert!(!bench.journal.has("CRASHED") && !bench.journal.has("start"), "{:#?}", bench.journal.all());
    bench.launcher.finish(3);
    bench.journal.until("status code 3").await;
    bench.journal.until("tidy").await;
    worker.stop().await;
}

/// Two servers with pools of one name, on one engine: the run is not on this worker's server.
#[tokio::test]
async fn what_belongs_to_another_server_is_left_alone() {
    for phase in [Phase::Created, Phase::Ended] {
        let bench = Bench::new().await;
        bench.launcher.leave_in(Uuid::from_u128(7), Uuid::from_u128(8), "w", phase, claim_of("w"));
        let worker = bench.run(bench.options()).await;
        bench.api.polls(1).await;
        worker.stop().await;
        let journal = bench.journal.all();
        assert!(!bench.journal.has("discard") && !bench.journal.has("tidy"), "{journal:#?}");
    }
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_reported() {
    let bench = Bench::new().await;
    let claim = claim_of("w");
    let run = bench.api.claimed("w", claim, "PENDING");
    bench.launcher.leave(run, "w", Phase::Ended, claim);
    bench.launcher.finish(0);
    let worker = bench.run(bench.options()).await;
    bench.journal.until("the run was still Pending").await;
    worker.stop().await;
}

#[tokio::test]
async fn what_was_made_and_never_started_is_removed_and_its_run_starts_anew() {
    let bench = Bench::new().await;
    let claim = claim_of("w");
    let run = bench.api.claimed("w", claim, "PENDING");
    bench.launcher.leave(run, "w", Phase::Created, claim);
    let worker = bench.run(bench.options()).await;
    bench.journal.until("discard").await;
    bench.journal.until("state SCHEDULED Scheduled Handed back").await;
    bench.journal.until("start").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_claim_without_infrastructure_goes_back_to_the_queue() {
    let bench = Bench::new().await;
    bench.api.claimed("w", claim_of("w"), "PENDING");
    let worker = bench.run(bench.options()).await;
    bench.journal.until("state SCHEDULED Scheduled Handed back").await;
    bench.journal.until("start").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_run_whose_infrastructure_is_gone_has_crashed_or_is_cancelled() {
    for (state, told) in [("RUNNING", "disappeared"), ("CANCELLING", "no infrastructure found). force")] {
        let bench = Bench::new().await;
        bench.api.claimed("w", Uuid::new_v4(), state);
        let worker = bench.run(bench.options()).await;
        bench.journal.until(told).await;
        worker.stop().await;
    }
}

#[tokio::test]
async fn claims_of_workers_that_are_alive_or_that_are_not_ours_are_left_alone() {
    let bench = Bench::new().await;
    bench.api.heard("alive");
    let claim = claim_of("alive");
    let run = bench.api.claimed("alive", claim, "RUNNING");
    bench.launcher.leave(run, "alive", Phase::Ended, claim);
    bench.launcher.finish(1);
    bench.api.claimed("python", Uuid::new_v4(), "PENDING");
    let worker = bench.run(bench.options()).await;
    bench.api.polls(2).await;
    worker.stop().await;
    assert!(!bench.journal.has("state "), "{:#?}", bench.journal.all());
}

#[tokio::test]
async fn what_a_dead_worker_of_another_name_left_is_adopted() {
    let bench = Bench::new().await;
    let claim = claim_of("dead");
    let run = bench.api.claimed("dead", claim, "RUNNING");
    bench.launcher.leave(run, "dead", Phase::Ended, claim);
    bench.launcher.finish(1);
    let worker = bench.run(bench.options()).await;
    bench.journal.until("general error").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_that_does_not_end_itself_is_ended() {
    let bench = Bench::new().await;
    let run = bench.api.schedule(json!({"cancellation_grace_seconds": 0}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.api.report_running(run);
    bench.api.cancel(run);
    bench.journal.until("kill").await;
    bench.journal.until("it did not end itself in time. force").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_run_that_never_reports_itself_is_ended_and_has_crashed() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({"start_timeout_seconds": 1}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("kill").await;
    bench.journal.until("did not report itself within 1 s").await;
    worker.stop().await;
}

#[tokio::test]
async fn any_program_is_a_flow_if_the_worker_reports_for_it() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({"report_exit_state": true}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("state RUNNING").await;
    bench.launcher.finish(0);
    bench.journal.until("state COMPLETED").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_crash_is_tried_again_as_often_as_the_job_wants() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({"crash_retries": 1, "crash_retry_delay_seconds": 0}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.launcher.finish(1);
    bench.journal.until("state SCHEDULED AwaitingRetry").await;
    assert!(bench.journal.has("retry 1 of 1") && bench.journal.has("\"ferryman.crash-retries\":1"));
    bench.api.release_retries();
    bench.journal.until("state CRASHED").await;
    worker.stop().await;
}

#[tokio::test]
async fn draining_waits_for_what_runs_and_cancelling_ends_it() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    worker.stop.request(OnShutdown::Drain);
    bench.api.schedule(json!({}));
    bench.launcher.finish(1);
    tokio::time::timeout(super::DEADLINE, worker.worker).await.expect("it does not end").unwrap();
    assert!(bench.journal.has("CRASHED") && bench.journal.has("tidy"));

    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    worker.stop.request(OnShutdown::Cancel);
    tokio::time::timeout(super::DEADLINE, worker.worker).await.expect("it does not end").unwrap();
    for entry in ["state CANCELLING", "kill", "state CANCELLED"] {
        assert!(bench.journal.has(entry), "{entry}: {:#?}", bench.journal.all());
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_its_crash_is_reported_ends_cancelled() {
    let bench = Bench::new().await;
    bench.api.schedule(json!({}));
    let worker = bench.run(bench.options()).await;
    bench.journal.until("start").await;
    bench.api.cancel_before("CRASHED");
    bench.launcher.finish(1);
    bench.journal.until("rejected: state CRASHED").await;
    bench.journal.until("state CANCELLED").await;
    worker.stop().await;
}
