//! Runs as the server knows them.

use std::collections::{BTreeSet, HashMap};

use prefect_api::flow_run::FlowRun;
use prefect_api::id::FlowRunId;
use prefect_client::{Client, Error};
use serde_json::json;

/// Runs that are asked for in one request.
pub(crate) const PAGE: usize = 200;

/// Those of the runs that exist.
pub(crate) async fn read(
    client: &Client,
    ids: BTreeSet<FlowRunId>,
) -> Result<HashMap<FlowRunId, FlowRun>, Error> {
    let ids: Vec<FlowRunId> = ids.into_iter().collect();
    let mut runs = HashMap::new();
    for page in ids.chunks(PAGE) {
        let filter = json!({"flow_runs": {"id": {"any_": page}}, "limit": PAGE});
        let page = client.filter_flow_runs(&filter).await?;
        runs.extend(page.into_iter().map(|run| (run.id, run)));
    }
    Ok(runs)
}
