//! The counting proxy between a client and the real Prefect server.

use std::time::Duration;

use testkit::prefect::{Options, PrefectServer};
use testkit::proxy::CountingProxy;

#[tokio::test]
async fn a_proxy_counts_the_requests_and_frames_of_a_worker() {
    let server = PrefectServer::start(Options::default()).await.unwrap();
    let proxy = CountingProxy::start(([127, 0, 0, 1], server.port()).into()).await.unwrap();
    let url = format!("http://{}/api", proxy.addr());
    let before = proxy.traffic();
    let worker = server.start_python_worker("counted", &["--run-once"], &[("PREFECT_API_URL", &url)]);
    let status = worker.unwrap().wait(Duration::from_mins(2)).await.unwrap();
    assert!(status.success());
    let traffic = proxy.traffic().since(&before);
    let count = |name: &str| traffic.requests.get(name).copied().unwrap_or_default();
    assert_eq!(count("POST /api/work_pools/counted/get_scheduled_flow_runs"), 1, "{traffic:?}");
    assert_eq!(count("GET /api/work_pools/counted/workers/connect"), 1, "{traffic:?}");
    assert!(traffic.total() >= 4, "{traffic:?}");
    // At least authentication and hello, and the answers to them.
    assert!(traffic.frames_sent >= 2 && traffic.frames_received >= 2, "{traffic:?}");
}
