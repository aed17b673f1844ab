//! Runs come to what they have to come to, whatever fails around them.

use std::time::Duration;

use e2e::fault::{engine, worker};

#[tokio::test(flavor = "multi_thread")]
async fn no_run_is_lost_stuck_doubled_or_leaked() {
    const RUNS: usize = 25;
    let report = worker::run(worker::Options { runs: RUNS, kills: 2, seed: 1 }).await.unwrap();
    assert_eq!(report.states.values().sum::<usize>(), RUNS, "{report:#?}");
    assert!(report.ok, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_taken_from_a_flow_holds_the_same_of_it_in_the_end() {
    let options = engine::Options { runs: 2, tasks: 50, seed: 1, longest: Duration::from_secs(2) };
    let report = engine::run(options).await.unwrap();
    assert!(report.runs == 2 && report.values > 1000, "{}", report.text());
    assert!(report.ok, "{}", report.text());
}
