//! Work pools, queues, workers, polls.

use prefect_api::flow_run::{PollScheduled, ScheduledRun};
use prefect_api::id::WorkQueueId;
use prefect_api::work_pool::{
    NewWorkPool, WorkPool, WorkPoolUpdate, WorkQueue, WorkQueueSettings, WorkerRecord,
};
use reqwest::Method;
use serde_json::json;

use crate::error::Error;
use crate::http::{Call, Client};

impl Client {
    /// A work pool.
    pub async fn read_work_pool(&self, name: &str) -> Result<Option<WorkPool>, Error> {
        self.read_optional(Call::new(Method::GET, "work_pools/{}", &[name])).await
    }

    /// Makes a work pool; 409 if it exists.
    pub async fn create_work_pool(&self, pool: &NewWorkPool) -> Result<WorkPool, Error> {
        self.read(Call::new(Method::POST, "work_pools/", &[]).json(pool)).await
    }

    /// Changes a work pool.
    pub async fn update_work_pool(&self, name: &str, update: &WorkPoolUpdate) -> Result<(), Error> {
        self.call(Call::new(Method::PATCH, "work_pools/{}", &[name]).json(update)).await
    }

    /// The queues of a pool.
    pub async fn read_work_queues(&self, pool: &str) -> Result<Vec<WorkQueue>, Error> {
        self.read(Call::new(Method::POST, "work_pools/{}/queues/filter", &[pool]).json(&json!({}))).await
    }

    /// Makes a queue of a pool.
    pub async fn create_work_queue(&self, pool: &str, queue: &WorkQueueSettings) -> Result<WorkQueue, Error> {
        self.read(Call::new(Method::POST, "work_pools/{}/queues", &[pool]).json(queue)).await
    }

    /// Changes a queue.
    pub async fn update_work_queue(&self, id: WorkQueueId, queue: &WorkQueueSettings) -> Result<(), Error> {
        self.call(Call::new(Method::PATCH, "work_queues/{}", &[&id.to_string()]).json(queue)).await
    }

    /// The workers of a pool, alive or not.
    pub async fn read_workers(&self, pool: &str) -> Result<Vec<WorkerRecord>, Error> {
        self.read(Call::new(Method::POST, "work_pools/{}/workers/filter", &[pool]).json(&json!({}))).await
    }

    /// Tells that a worker is alive; it counts as online for three times `interval_seconds`.
    pub async fn worker_heartbeat(
        &self,
        pool: &str,
        worker: &str,
        interval_seconds: u64,
    ) -> Result<(), Error> {
        let body = json!({"name": worker, "heartbeat_interval_seconds": interval_seconds});
        self.call(Call::new(Method::POST, "work_pools/{}/workers/heartbeat", &[pool]).json(&body)).await
    }

    /// Runs of a pool that are due. No claim: every worker is told the same ones. A pool or queue that does
    /// not exist has none.
    pub async fn poll_scheduled(
        &self,
        pool: &str,
        request: &PollScheduled,
    ) -> Result<Vec<ScheduledRun>, Error> {
        let call = Call::new(Method::POST, "work_pools/{}/get_scheduled_flow_runs", &[pool]).json(request);
        Ok(self.read_optional(call).await?.unwrap_or_default())
    }
}
