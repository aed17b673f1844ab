//! Flow runs as the neighbours of the system see them: triggered by deployment, watched until they end.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use prefect_api::flow_run::{FlowRun, FlowRunUpdate, NewDeploymentRun};
use prefect_api::id::FlowRunId;
use prefect_api::state::{Answer, NewState, StateType};
use prefect_client::{Client, Settings, settings::Inputs};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// How often a run is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How long a busy server is waited for.
const PATIENCE: Duration = Duration::from_mins(3);
const RETRY: Duration = Duration::from_secs(1);

/// A client of this API, with these variables beside its address.
pub fn client(api_url: &str, more: &[(String, String)]) -> Result<Client> {
    let mut environment: std::collections::BTreeMap<_, _> = more.iter().cloned().collect();
    environment.insert("PREFECT_API_URL".to_owned(), api_url.to_owned());
    let directory = std::path::PathBuf::from("/nonexistent");
    Ok(Client::new(&Settings::resolve(&Inputs { environment, directory })?)?)
}

/// The run's page in the UI of the server with this API.
pub fn page(api_url: &str, id: impl std::fmt::Display) -> String {
    format!("{}/runs/flow-run/{id}", api_url.trim_end_matches('/').trim_end_matches("/api"))
}

/// Makes a run of `flow/deployment`. Its container stays after its end, so that it can be looked at.
pub async fn trigger(client: &Client, flow: &str, deployment: &str, parameters: Value) -> Result<FlowRun> {
    let found = client.read_deployment_by_name(flow, deployment).await?;
    let found = found.with_context(|| format!("there is no deployment {flow}/{deployment}"))?;
    let Value::Object(parameters) = parameters else { bail!("parameters have to be an object") };
    let job_variables = Map::from_iter([("auto_remove".to_owned(), Value::Bool(false))]);
    let run =
        NewDeploymentRun { parameters, job_variables: Some(job_variables), ..NewDeploymentRun::default() };
    Ok(client.create_deployment_run(found.id, &run).await?)
}

/// Claims a run and says where it is executed, as a worker does before it starts anything.
pub async fn claim(client: &Client, id: FlowRunId, infrastructure: &str) -> Result<()> {
    let state = NewState::new(StateType::Pending);
    let answer = patiently(|| client.set_flow_run_state(id, &state, false)).await?;
    let taken = match &answer {
        Answer::Accept(_) => true,
        // The answer to an earlier try was lost.
        Answer::Reject { state: Some(now), .. } => now.entered_by(&state),
        _ => false,
    };
    if !taken {
        bail!("the server does not let the run be claimed: {answer:?}");
    }
    let update =
        FlowRunUpdate { infrastructure_pid: Some(infrastructure.to_owned()), ..FlowRunUpdate::default() };
    Ok(patiently(|| client.update_flow_run(id, &update)).await?)
}

/// Waits until a run has ended, telling each state that it is seen in. A run that waits for somebody to resume
/// it has not.
pub async fn wait(
    client: &Client,
    id: FlowRunId,
    deadline: Duration,
    mut saw: impl FnMut(&FlowRun),
) -> Result<FlowRun> {
    let started = Instant::now();
    let mut last = String::new();
    loop {
        let run = client.read_flow_run(id).await?;
        let name = run.state_name.clone().unwrap_or_default();
        if name != last {
            saw(&run);
            last = name;
        }
        if run.state_type.is_some_and(StateType::is_final) {
            return Ok(run);
        }
        if started.elapsed() > deadline {
            bail!("the flow run {} is still {last} after {} s", run.name, deadline.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The run's message and its log, for the reader of a failure.
pub async fn explain(client: &Client, run: &FlowRun) -> String {
    let message = run.state.as_ref().and_then(|state| state.message.clone()).unwrap_or_default();
    let logs = logs(client, run.id).await.unwrap_or_default();
    let tail: Vec<_> = logs.iter().rev().take(30).rev().map(|line| format!("  {line}")).collect();
    format!("{} is {}: {message}\n{}", run.name, run.state_name.as_deref().unwrap_or("?"), tail.join("\n"))
}

/// The lines of a run's log, oldest first.
pub async fn logs(client: &Client, id: FlowRunId) -> Result<Vec<String>> {
    let filter = json!({"logs": {"flow_run_id": {"any_": [id]}}, "sort": "TIMESTAMP_ASC", "limit": 200});
    let lines = client.filter_logs(&filter).await?;
    Ok(lines.iter().filter_map(|line| Some(line.get("message")?.as_str()?.to_owned())).collect())
}

/// The states that a run went through, oldest first.
pub async fn states(client: &Client, id: FlowRunId) -> Result<Vec<String>> {
    let mut states = client.read_flow_run_states(id).await?;
    states.sort_by_key(|state| state.timestamp);
    Ok(states.iter().map(|state| state.name().to_owned()).collect())
}

/// The subflow runs of a run, in the order of their start.
pub async fn subflows(client: &Client, id: FlowRunId) -> Result<Vec<FlowRun>> {
    let filter = json!({"flow_runs": {"parent_flow_run_id": {"any_": [id]}}, "sort": "START_TIME_ASC"});
    Ok(client.filter_flow_runs(&filter).await?)
}

/// Repeats a call that may be repeated, as long as the server only says that it is busy.
pub(crate) async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, prefect_client::Error>
where
    F: Future<Output = Result<T, prefect_client::Error>>,
{
    let started = Instant::now();
    loop {
        match call().await {
            Err(error) if error.is_transient() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(RETRY).await;
            }
            outcome => return outcome,
        }
    }
}
