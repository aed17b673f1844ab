//! Deployments beside what the server has of them.

use std::collections::BTreeMap;

use prefect_api::deployment::{Deployment, DeploymentSettings};
use prefect_api::work_pool::WorkPool;
use prefect_client::Client;
use serde_json::Value;

use super::entry::DeploymentSpec;
use crate::error::Doing as _;
use crate::plan::{Change, Request, Write};
use crate::{Error, Plan, Step, Subject};
use prefect_api::nearest::nearest;

/// The queue that runs go to unless a deployment names one.
const DEFAULT_QUEUE: &str = "default";

/// Adds the steps for `deployments` to `plan`.
pub(crate) async fn plan(
    client: &Client,
    deployments: &[DeploymentSpec],
    plan: &mut Plan,
) -> Result<(), Error> {
    let mut pools: BTreeMap<&str, WorkPool> = BTreeMap::new();
    for deployment in deployments {
        let full = format!("{}/{}", deployment.flow, deployment.name);
        let pool = &deployment.pool;
        if !pools.contains_key(pool.as_str()) {
            let found = client.read_work_pool(pool).await.doing(|| format!("read the work pool {pool}"))?;
            let missing = || Error::NoSuchPool { deployment: full.clone(), pool: pool.clone() };
            pools.insert(pool, found.ok_or_else(missing)?);
        }
        if let Some(pool) = pools.get(pool.as_str()) {
            plan.warnings.extend(ineffective(deployment, pool));
        }
        let found = client
            .read_deployment_by_name(&deployment.flow, &deployment.name)
            .await
            .doing(|| format!("read the deployment {full}"))?;
        let change = compare(deployment, found.as_ref())?;
        let subject = Subject::Deployment { flow: deployment.flow.clone(), name: deployment.name.clone() };
        plan.steps.push(Step { subject, change });
    }
    Ok(())
}

/// Job variables that the pool's template does not use.
fn ineffective(deployment: &DeploymentSpec, pool: &WorkPool) -> Vec<String> {
    let Some(known) = pool.base_job_template.variables.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    let root = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let unknown = deployment.job_variables.keys().filter(|name| !known.contains_key(&root(name)));
    let warning = |name: &String| {
        let near = nearest(name, known.keys().map(String::as_str)).unwrap_or("none");
        format!(
            "{}/{}: the work pool {} does not use the job variable {name}; the nearest that it does is {near}",
            deployment.flow, deployment.name, pool.name
        )
    };
    unknown.map(warning).collect()
}

fn compare(wanted: &DeploymentSpec, found: Option<&Deployment>) -> Result<Change, Error> {
    let settings = settings(wanted, found);
    let what = found.map(|found| differences(wanted, &settings, found));
    if wanted.job_variables.is_empty() && found.is_some_and(|found| !found.job_variables.is_empty()) {
        let deployment = format!("{}/{}", wanted.flow, wanted.name);
        return Err(Error::JobVariablesStay { deployment });
    }
    let write = Write(Request::SaveDeployment {
        flow: wanted.flow.clone(),
        name: wanted.name.clone(),
        settings: Box::new(settings),
        enforce_schema: wanted.enforce_schema,
    });
    Ok(match what {
        None => Change::Create(write),
        Some(what) if what.is_empty() => Change::Unchanged,
        Some(what) => Change::Update { what, write },
    })
}

/// The body that makes the server's deployment what is wanted. What operators switch by hand (pauses) stays.
fn settings(wanted: &DeploymentSpec, found: Option<&Deployment>) -> DeploymentSettings {
    let shown = found.map(|found| found.schedules.as_slice()).unwrap_or_default();
    let schedules = wanted
        .schedules
        .iter()
        .map(|schedule| schedule.wire(shown.iter().find(|shown| schedule.is_at(shown))));
    DeploymentSettings {
        paused: wanted.paused.or(found.map(|found| found.paused)).unwrap_or_default(),
        schedules: schedules.collect(),
        concurrency_limit: wanted.concurrency.as_ref().map(|concurrency| concurrency.limit),
        concurrency_options: wanted.concurrency.as_ref().and_then(|concurrency| concurrency.options.clone()),
        parameters: wanted.parameters.clone(),
        parameter_openapi_schema: wanted.schema.clone(),
        tags: wanted.tags.clone(),
        pull_steps: wanted.pull_steps.clone(),
        work_queue_name: wanted.queue.clone(),
        work_pool_name: Some(wanted.pool.clone()),
        description: wanted.description.clone(),
        entrypoint: Some(wanted.entrypoint.clone()),
        version: wanted.version.clone(),
        job_variables: wanted.job_variables.clone(),
    }
}

fn differences(wanted: &DeploymentSpec, settings: &DeploymentSettings, found: &Deployment) -> Vec<String> {
    let limit = found.global_concurrency_limit.as_ref().map(|limit| limit.limit);
    let queue = wanted.queue.as_deref().unwrap_or(DEFAULT_QUEUE);
    let pairs = [
        ("version", settings.version == found.version),
        ("description", settings.description == found.description),
        ("entrypoint", settings.entrypoint == found.entrypoint),
        ("tags", settings.tags == found.tags),
        ("parameters", settings.parameters == found.parameters),
        (
            "parameter schema",
            Some(&settings.parameter_openapi_schema) == found.parameter_openapi_schema.as_ref(),
        ),
        ("enforce_parameter_schema", wanted.enforce_schema == found.enforce_parameter_schema),
        ("schedules", same_schedules(wanted, &found.schedules)),
        ("paused", settings.paused == found.paused),
        ("concurrency limit", settings.concurrency_limit == limit),
        ("concurrency options", settings.concurrency_options == found.concurrency_options),
        ("work pool", settings.work_pool_name == found.work_pool_name),
        ("work queue", Some(queue) == found.work_queue_name.as_deref()),
        ("job variables", settings.job_variables == found.job_variables),
        ("pull steps", settings.pull_steps == found.pull_steps),
    ];
    pairs.into_iter().filter(|(_, same)| !same).map(|(name, _)| name.to_owned()).collect()
}

/// The server shows schedules in any order.
fn same_schedules(wanted: &DeploymentSpec, found: &[Value]) -> bool {
    let mut left: Vec<&Value> = found.iter().collect();
    let each_is_there = wanted.schedules.iter().all(|schedule| {
        let at = left.iter().position(|found| {
            let active = found.get("active").and_then(Value::as_bool);
            schedule.is_at(found) && schedule.active.is_none_or(|wanted| active == Some(wanted))
        });
        at.map(|at| left.swap_remove(at)).is_some()
    });
    each_is_there && left.is_empty()
}

#[cfg(test)]
mod tests;
