//! Carrying a plan out.

use prefect_api::deployment::NewDeployment;
use prefect_api::work_pool::WorkQueueSettings;
use prefect_client::Client;
use serde_json::Value;

use crate::error::Doing as _;
use crate::plan::{Change, Request, Write};
use crate::{Error, Step};

/// Carries one step out. A step that is unchanged writes nothing.
///
/// # Errors
/// The server cannot be reached or refuses. Steps before it stay done; a new plan continues where this one ended.
pub async fn apply(client: &Client, step: Step) -> Result<(), Error> {
    match step.change {
        Change::Unchanged => Ok(()),
        Change::Create(Write(request)) | Change::Update { write: Write(request), .. } => {
            write(client, request).await.doing(|| format!("save the {}", step.subject))
        }
    }
}

async fn write(client: &Client, request: Request) -> Result<(), prefect_client::Error> {
    match request {
        Request::SetVariable(variable) => {
            client.set_variable(&variable.name, &Value::String(variable.value)).await
        }
        Request::SaveSecret { name, value } => client.save_secret(&name, &value).await,
        Request::CreateLimit { name, limit } => client.create_limit(&name, limit, 0.0).await,
        Request::UpdateLimit { name, limit } => client.update_limit(&name, limit).await,
        Request::CreatePool(pool) => client.create_work_pool(&pool).await.map(drop),
        Request::UpdatePool { name, update } => client.update_work_pool(&name, &update).await,
        Request::SaveQueue { pool, queue, settings } => save_queue(client, &pool, queue, settings).await,
        Request::SaveDeployment { flow, name, settings, enforce_schema } => {
            let flow = client.create_flow(&flow).await?;
            let deployment = NewDeployment {
                name,
                flow_id: flow.id,
                settings: *settings,
                enforce_parameter_schema: enforce_schema,
            };
            client.create_deployment(&deployment).await.map(drop)
        }
    }
}

/// Looks again whether the queue exists: the server makes the queue `default` together with its pool.
async fn save_queue(
    client: &Client,
    pool: &str,
    queue: String,
    settings: WorkQueueSettings,
) -> Result<(), prefect_client::Error> {
    let queues = client.read_work_queues(pool).await?;
    if let Some(found) = queues.iter().find(|found| found.name == queue) {
        return client.update_work_queue(found.id, &settings).await;
    }
    let settings = WorkQueueSettings { name: Some(queue), ..settings };
    client.create_work_queue(pool, &settings).await.map(drop)
}
