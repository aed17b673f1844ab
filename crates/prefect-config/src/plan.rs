//! The difference between what the files say and what the server has, as a list of steps.
//!
//! Making a plan only reads. Faults that show only beside the server, like a pool of another type, are found
//! here, before the first write.

use std::fmt;

use prefect_api::deployment::DeploymentSettings;
use prefect_api::work_pool::{NewWorkPool, WorkPoolUpdate, WorkQueueSettings};
use prefect_client::Client;
use secrecy::SecretString;

use crate::error::Doing as _;
use crate::{Desired, Error, Secret, TagLimit, Variable, WorkPoolSpec, compare, deploy};

/// What a step is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A variable.
    Variable(String),
    /// A Secret block.
    Secret(String),
    /// The limit of a tag.
    TagLimit(String),
    /// A work pool.
    WorkPool(String),
    /// A queue of a work pool.
    WorkQueue {
        /// The pool.
        pool: String,
        /// The queue.
        queue: String,
    },
    /// A deployment.
    Deployment {
        /// The flow.
        flow: String,
        /// The deployment.
        name: String,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Secret(name) => write!(f, "secret {name}"),
            Self::TagLimit(tag) => write!(f, "tag limit {tag}"),
            Self::WorkPool(name) => write!(f, "work pool {name}"),
            Self::WorkQueue { pool, queue } => write!(f, "work queue {pool}/{queue}"),
            Self::Deployment { flow, name } => write!(f, "deployment {flow}/{name}"),
        }
    }
}

/// What is to be done about a subject.
#[derive(Debug, Clone)]
pub enum Change {
    /// It is as it should be.
    Unchanged,
    /// It does not exist yet.
    Create(Write),
    /// It is different.
    Update {
        /// What is different, for people.
        what: Vec<String>,
        /// How to change it.
        write: Write,
    },
}

/// A write to the server; [`crate::apply()`] carries it out.
#[derive(Debug, Clone)]
pub struct Write(pub(crate) Request);

#[derive(Debug, Clone)]
pub(crate) enum Request {
    SetVariable(Variable),
    SaveSecret { name: String, value: SecretString },
    CreateLimit { name: String, limit: u32 },
    UpdateLimit { name: String, limit: u32 },
    CreatePool(NewWorkPool),
    UpdatePool { name: String, update: WorkPoolUpdate },
    SaveQueue { pool: String, queue: String, settings: WorkQueueSettings },
    SaveDeployment { flow: String, name: String, settings: Box<DeploymentSettings>, enforce_schema: bool },
}

/// One item of a plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it is about.
    pub subject: Subject,
    /// What is to be done.
    pub change: Change,
}

/// `variable s3_region: updated (…)`: what has been done, once the step is carried out.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Change::Unchanged => write!(f, "{}: unchanged", self.subject),
            Change::Create(_) => write!(f, "{}: created", self.subject),
            Change::Update { what, .. } => write!(f, "{}: updated ({})", self.subject, what.join(", ")),
        }
    }
}

/// What has to be done so that the server has what the files say, in order.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// What the reader should know, though it does not prevent anything.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.change, Change::Unchanged))
    }
}

/// Compares `desired` with the server.
///
/// # Errors
/// The server cannot be reached or refuses; a pool of another type; a deployment on a pool that does not exist.
pub async fn plan(client: &Client, desired: &Desired) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    for variable in &desired.variables {
        plan.steps.push(plan_variable(client, variable).await?);
    }
    for secret in &desired.secrets {
        plan.steps.push(plan_secret(client, secret).await?);
    }
    for limit in &desired.limits {
        plan.steps.push(plan_limit(client, limit).await?);
    }
    for pool in &desired.work_pools {
        plan.steps.extend(plan_pool(client, pool).await?);
    }
    deploy::plan(client, &desired.deployments, &mut plan).await?;
    Ok(plan)
}

async fn plan_variable(client: &Client, variable: &Variable) -> Result<Step, Error> {
    let name = &variable.name;
    let found = client.read_variable(name).await.doing(|| format!("read the variable {name}"))?;
    let change = compare::variable(variable, found.as_ref());
    Ok(Step { subject: Subject::Variable(name.clone()), change })
}

async fn plan_secret(client: &Client, secret: &Secret) -> Result<Step, Error> {
    let name = &secret.name;
    let found =
        client.read_block("secret", name, true).await.doing(|| format!("read the secret block {name}"))?;
    let change = compare::secret(secret, found.as_ref());
    Ok(Step { subject: Subject::Secret(name.clone()), change })
}

async fn plan_limit(client: &Client, limit: &TagLimit) -> Result<Step, Error> {
    let name = format!("tag:{}", limit.tag);
    let found = client.read_limit(&name).await.doing(|| format!("read the concurrency limit {name}"))?;
    let change = compare::limit(limit, name, found.as_ref());
    Ok(Step { subject: Subject::TagLimit(limit.tag.clone()), change })
}

async fn plan_pool(client: &Client, pool: &WorkPoolSpec) -> Result<Vec<Step>, Error> {
    let name = &pool.name;
    let found = client.read_work_pool(name).await.doing(|| format!("read the work pool {name}"))?;
    let queues = match &found {
        Some(_) => client
            .read_work_queues(name)
            .await
            .doing(|| format!("read the queues of the work pool {name}"))?,
        None => Vec::new(),
    };
    let change = compare::pool(pool, found.as_ref())?;
    let mut steps = vec![Step { subject: Subject::WorkPool(name.clone()), change }];
    for queue in &pool.queues {
        let found = queues.iter().find(|found| found.name == queue.name);
        let subject = Subject::WorkQueue { pool: name.clone(), queue: queue.name.clone() };
        steps.push(Step { subject, change: compare::queue(name, queue, found) });
    }
    Ok(steps)
}
