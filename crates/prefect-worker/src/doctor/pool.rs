//! The work pools and what belongs to them: queues, template, deployments.

use std::collections::BTreeSet;

use prefect_api::deployment::Deployment;
use prefect_api::template::JobTemplate;
use prefect_api::work_pool::{BaseJobTemplate, WorkPool};
use prefect_client::Client;
use serde_json::json;

use super::{Finding, Request, in_time};
use crate::drift::Drift;
use crate::error::chain;
use crate::launcher::{docker, process};

/// Deployments that are asked for in one request.
const PAGE: usize = 200;

/// A kind of pool that this worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Docker,
    Process,
}

impl Kind {
    pub(super) fn parse(word: &str) -> Option<Self> {
        match word {
            "docker" => Some(Self::Docker),
            "process" => Some(Self::Process),
            _ => None,
        }
    }

    fn default_template(self) -> BaseJobTemplate {
        match self {
            Self::Docker => docker::default_template(),
            Self::Process => process::default_template(),
        }
    }
}

/// A pool that can be served.
pub(super) struct Served {
    pub(super) record: WorkPool,
    pub(super) kind: Kind,
    pub(super) template: JobTemplate,
}

/// A deployment that can be looked at.
pub(super) struct Subject {
    /// `FLOW/NAME`.
    pub(super) name: String,
    pub(super) deployment: Deployment,
}

/// The pools that can be served, each with its deployments.
#[derive(Default)]
pub(super) struct Subjects {
    pub(super) served: Vec<(Served, Vec<Subject>)>,
}

/// What is told of pools and deployments if nobody can be asked.
pub(super) fn unchecked(request: &Request, why: &str) -> Vec<Finding> {
    let how = "mend that first";
    let of = |check: &'static str, names: &[String]| {
        names.iter().map(|name| Finding::unchecked(check, why, how).about(name)).collect::<Vec<_>>()
    };
    let mut findings = of("pool", &request.pools);
    findings.extend(of("deployment", &request.deployments));
    findings
}

/// Looks at the pools, and finds the deployments.
pub(super) async fn look(client: &Client, request: &Request, findings: &mut Vec<Finding>) -> Subjects {
    let mut named = Vec::new();
    for name in &request.deployments {
        match find(client, name).await {
            Ok(found) => named.push(found),
            Err(finding) => findings.push(finding.about(name)),
        }
    }
    let of_deployments = named.iter().filter_map(|found| found.deployment.work_pool_name.clone());
    let pools: BTreeSet<String> = request.pools.iter().cloned().chain(of_deployments).collect();
    let mut subjects = Subjects::default();
    for name in pools {
        let Some(served) = look_at_one(client, &name, request.kind.as_deref(), findings).await else {
            continue;
        };
        let deployments = if request.deployments.is_empty() {
            let all = all_of(client, &name).await;
            all.unwrap_or_else(|problem| {
                let remedy = "look at the log of the Prefect server";
                findings.push(Finding::failed("deployments", problem, remedy).about(&name));
                Vec::new()
            })
        } else {
            let (of_pool, others) =
                named.into_iter().partition(|found| found.deployment.work_pool_name.as_ref() == Some(&name));
            named = others;
            of_pool
        };
        subjects.served.push((served, deployments));
    }
    subjects
}

/// A deployment that the command line names.
async fn find(client: &Client, name: &str) -> Result<Subject, Finding> {
    let unknown = |found: &str| {
        Finding::failed("deployment", found, "check its name (FLOW/NAME) and the API; deploy it first")
    };
    let (flow, own) = name.split_once('/').ok_or_else(|| unknown("its name is not FLOW/NAME"))?;
    match in_time(client.read_deployment_by_name(flow, own)).await {
        Ok(Ok(Some(deployment))) if deployment.work_pool_name.is_none() => {
            Err(unknown("it has no work pool: no worker runs it"))
        }
        Ok(Ok(Some(deployment))) => Ok(Subject { name: name.to_owned(), deployment }),
        Ok(Ok(None)) => Err(unknown("the server has none of this name")),
        Ok(Err(error)) => Err(unknown(&format!("failed to {}", chain(&error)))),
        Err(silence) => Err(unknown(&silence)),
    }
}

/// All deployments of a pool.
async fn all_of(client: &Client, pool: &str) -> Result<Vec<Subject>, String> {
    let mut found: Vec<Subject> = Vec::new();
    loop {
        let filter = json!({"work_pools": {"name": {"any_": [pool]}}, "sort": "NAME_ASC",
            "limit": PAGE, "offset": found.len()});
        let page = in_time(client.filter_deployments(&filter)).await?;
        let page = page.map_err(|error| format!("failed to {}", chain(&error)))?;
        let last = page.len() < PAGE;
        for deployment in page {
            let flow = in_time(client.read_flow(deployment.flow_id)).await?;
            let flow = flow.map_err(|error| format!("failed to {}", chain(&error)))?;
            found.push(Subject { name: format!("{}/{}", flow.name, deployment.name), deployment });
        }
        if last {
            return Ok(found);
        }
    }
}

/// Looks at a pool; gives it if a worker can serve it.
async fn look_at_one(
    client: &Client,
    name: &str,
    wanted: Option<&str>,
    findings: &mut Vec<Finding>,
) -> Option<Served> {
    let record = match in_time(client.read_work_pool(name)).await {
        Ok(Ok(Some(record))) => record,
        Ok(Ok(None)) => {
            findings.push(absent(wanted).about(name));
            return None;
        }
        Ok(Err(error)) => {
            let remedy = error.hint().unwrap_or("look at the log of the Prefect server");
            findings
                .push(Finding::failed("pool", format!("failed to {}", chain(&error)), remedy).about(name));
            return None;
        }
        Err(silence) => {
            let remedy = "look at the log of the Prefect server";
            findings.push(Finding::failed("pool", silence, remedy).about(name));
            return None;
        }
    };
    let kind = match suitable(&record, wanted) {
        Ok(kind) => kind,
        Err(finding) => {
            findings.push(finding.about(name));
            return None;
        }
    };
    findings.push(state(client, &record).await.about(name));
    let (template, finding) = template(&record, kind);
    findings.push(finding.about(name));
    template.map(|template| Served { record, kind, template })
}

fn absent(wanted: Option<&str>) -> Finding {
    match wanted {
        Some(kind) => Finding::warning(
            "pool",
            "the server has none of this name",
            format!(
                "a worker that is started with --type {kind} makes it, unless --no-create-pool-if-not-found"
            ),
        ),
        None => Finding::failed(
            "pool",
            "the server has none of this name",
            "check --pool and the API, or start the worker with --type: then it makes the pool",
        ),
    }
}

/// The pool's kind, if this worker serves such pools.
fn suitable(record: &WorkPool, wanted: Option<&str>) -> Result<Kind, Finding> {
    let remedy = "choose a pool of type docker or process, or start the worker that serves this type";
    if let Some(wanted) = wanted.filter(|wanted| *wanted != record.kind) {
        let found = format!("it is of type {:?}, not {wanted:?}", record.kind);
        return Err(Finding::failed("pool", found, remedy));
    }
    Kind::parse(&record.kind).ok_or_else(|| {
        let found = format!("it is of type {:?}, which this worker does not serve", record.kind);
        Finding::failed("pool", found, remedy)
    })
}

/// Whether the pool gives runs out, and who is there to take them.
async fn state(client: &Client, record: &WorkPool) -> Finding {
    let online = match in_time(client.read_workers(&record.name)).await {
        Ok(Ok(workers)) => {
            let online = workers.iter().filter(|worker| worker.status.as_deref() == Some("ONLINE")).count();
            format!("workers online: {online}")
        }
        _ => "workers are not known".to_owned(),
    };
    let limit = record.concurrency_limit;
    let limited = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {limit}"));
    let found = format!("type {}, {limited}, {online}", record.kind);
    let queues = in_time(client.read_work_queues(&record.name)).await;
    let queues = queues.ok().and_then(Result::ok).unwrap_or_default();
    if record.is_paused {
        let remedy = format!("prefect work-pool resume {}", record.name);
        Finding::warning("pool", format!("it is paused and gives no runs out ({found})"), remedy)
    } else if limit == Some(0) {
        let remedy = format!("prefect work-pool set-concurrency-limit {} NUMBER", record.name);
        Finding::warning("pool", format!("its limit is 0: it gives no runs out ({found})"), remedy)
    } else if !queues.is_empty() && queues.iter().all(|queue| queue.is_paused) {
        let remedy = "prefect work-queue resume QUEUE";
        Finding::warning("pool", format!("all its queues are paused: it gives no runs out ({found})"), remedy)
    } else {
        Finding::ok("pool", found)
    }
}

/// The pool's template, if it is right, and how it differs from ours.
fn template(record: &WorkPool, kind: Kind) -> (Option<JobTemplate>, Finding) {
    let ours = kind.default_template();
    let theirs = &record.base_job_template;
    if theirs.is_empty() {
        let finding = Finding::ok("template", "the pool has none yet: the worker gives it its own");
        return (JobTemplate::parse(&ours).ok(), finding);
    }
    let template = match JobTemplate::parse(theirs) {
        Ok(template) => template,
        Err(error) => {
            let remedy =
                "declare every placeholder of job_configuration in variables.properties, or correct its name";
            return (None, Finding::failed("template", format!("failed to {}", chain(&error)), remedy));
        }
    };
    let drift = Drift::between(&ours, theirs);
    let finding = if drift.missing.is_empty() && drift.unknown.is_empty() {
        Finding::ok("template", "it has all variables of this worker, and no others")
    } else if drift.missing.is_empty() {
        Finding::ok("template", format!("it has all variables of this worker; {drift}"))
    } else {
        Finding::warning(
            "template",
            format!("it is older than this worker, or made by another: {drift}"),
            "deployments cannot set what it lacks; give the pool the worker's template (job-templates)",
        )
    };
    (Some(template), finding)
}
