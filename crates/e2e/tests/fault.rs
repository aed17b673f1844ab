//! Runs go through while worker, engine and server are killed, and each comes to the end that it had.

use e2e::fault::{self, Options};

#[tokio::test(flavor = "multi_thread")]
async fn no_run_is_lost_stuck_doubled_or_leaked() {
    const RUNS: usize = 25;
    let report = fault::run(Options { runs: RUNS, kills: 2, seed: 1 }).await.unwrap();
    assert_eq!(report.states.values().sum::<usize>(), RUNS, "{report:#?}");
    assert!(report.ok, "{report:#?}");
}
