//! Job variables lead to the same containers through our worker as through Python's, and flow runs to the same records
//! through our engine.

use e2e::differential::{Options, Part, engine, worker};

const QUICK: Options = Options { part: Part::Quick, quiet: true };

#[tokio::test(flavor = "multi_thread")]
async fn both_workers_make_the_same_containers() {
    let report = worker::run(&QUICK, std::future::pending()).await.unwrap();
    assert!(report.launched > 0 && report.refused > 0, "{}", report.text());
    assert!(report.passed(), "{}", report.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_engines_leave_the_same_records() {
    let report = engine::run(&QUICK, None, std::future::pending()).await.unwrap();
    assert!(report.scenarios > 0 && report.records > 0, "{}", report.text());
    assert!(report.passed(), "{}", report.text());
}
