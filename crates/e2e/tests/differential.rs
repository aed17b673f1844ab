//! Job variables lead to the same containers through our worker as through Python's.

use e2e::differential::worker::{self, Options, Part};

#[tokio::test(flavor = "multi_thread")]
async fn both_workers_make_the_same_containers() {
    let options = Options { part: Part::Quick, quiet: true };
    let report = worker::run(&options, std::future::pending()).await.unwrap();
    assert!(report.launched > 0 && report.refused > 0, "{}", report.text());
    assert!(report.passed(), "{}", report.text());
}
