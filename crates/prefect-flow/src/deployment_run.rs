//! Runs of deployments, started by a flow: elsewhere, by whatever worker serves the deployment's pool, with a task run in
//! this run that stands for it (contract §3.4).

use std::future::IntoFuture;
use std::pin::Pin;

use jiff::Timestamp;
use prefect_api::deployment::Deployment;
use prefect_api::flow_run::{FlowRun, NewDeploymentRun, NewTaskRun, TaskInput, TaskInputs, TaskRunPolicy};
use prefect_api::id::{FlowRunId, TaskRunId};
use prefect_api::state::{NewState, StateType};
use prefect_client::Error;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::context::Context;
use crate::error::{Cancelled, chain};
use crate::task::{Done, Handle, Outcome, Upstream};

/// A run of a deployment that did not complete, or was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeploymentRunError {
    /// There is no such deployment.
    #[error("run deployment '{deployment}': there is none of that name")]
    Missing {
        /// `FLOW/DEPLOYMENT`.
        deployment: String,
    },
    /// The parameters are no JSON object.
    #[error("run deployment '{deployment}': parameters must be a struct with named fields")]
    Parameters {
        /// `FLOW/DEPLOYMENT`.
        deployment: String,
    },
    /// One that it waits for did not complete; nothing was started.
    #[error("run deployment '{deployment}': upstream task run '{upstream}' did not complete")]
    NotReady {
        /// `FLOW/DEPLOYMENT`.
        deployment: String,
        /// The one that it waits for.
        upstream: TaskRunId,
    },
    /// The server does not take the run, or could not be asked.
    #[error("run deployment '{deployment}'")]
    Report {
        /// `FLOW/DEPLOYMENT`.
        deployment: String,
        /// Why.
        source: Error,
    },
    /// It ended otherwise than completed.
    #[error("run '{run}' of deployment '{deployment}' ended as {state}: {message}")]
    Ended {
        /// `FLOW/DEPLOYMENT`.
        deployment: String,
        /// The run's name.
        run: String,
        /// The run's id.
        id: FlowRunId,
        /// The state's name.
        state: String,
        /// What is told about it.
        message: String,
    },
    /// This run was cancelled while it waited. The server cancels the runs that a cancelled run has started.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A run of a deployment that has not been started; made by [`Context::run_deployment`]. Awaited, it is started and waited
/// for; dropped while it is waited for, it goes on.
#[must_use = "a run of a deployment is not started until it is awaited"]
#[derive(Debug)]
pub struct DeploymentRun {
    ctx: Context,
    deployment: String,
    parameters: Option<Map<String, Value>>,
    name: Option<String>,
    tags: Vec<String>,
    at: Option<Timestamp>,
    job_variables: Option<Map<String, Value>>,
    idempotency_key: Option<String>,
    upstreams: Vec<(String, Handle)>,
}

impl DeploymentRun {
    pub(crate) fn new(ctx: Context, deployment: String) -> Self {
        Self {
            ctx,
            deployment,
            parameters: Some(Map::new()),
            name: None,
            tags: Vec::new(),
            at: None,
            job_variables: None,
            idempotency_key: None,
            upstreams: Vec::new(),
        }
    }

    /// Parameters over the deployment's: a struct or a map.
    pub fn parameters(mut self, parameters: &impl Serialize) -> Self {
        self.parameters = match serde_json::to_value(parameters) {
            Ok(Value::Object(parameters)) => Some(parameters),
            Ok(_) | Err(_) => None,
        };
        self
    }

    /// The run's name; the server invents one otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// One more tag beside the deployment's.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// When it is due; now otherwise.
    pub const fn scheduled_at(mut self, time: Timestamp) -> Self {
        self.at = Some(time);
        self
    }

    /// Job variables over the deployment's: another image, more memory.
    pub fn job_variables(mut self, variables: Map<String, Value>) -> Self {
        self.job_variables = Some(variables);
        self
    }

    /// A run that was made under this key before is taken instead of a new one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Its parameter `name` comes from a task: an edge in the graph. It starts when that one has ended, and never if that
    /// one did not complete.
    pub fn input(mut self, name: impl Into<String>, upstream: &impl Upstream) -> Self {
        self.upstreams.push((name.into(), upstream.handle().clone()));
        self
    }

    /// It starts when another has ended, and never if that one did not complete.
    pub fn wait_for(self, upstream: &impl Upstream) -> Self {
        self.input("wait_for", upstream)
    }

    /// Starts the run and does not wait for it.
    pub async fn start(self) -> Result<FlowRun, DeploymentRunError> {
        Ok(self.begin().await?.0)
    }

    async fn begin(&self) -> Result<(FlowRun, TaskRunId), DeploymentRunError> {
        let deployment = || self.deployment.clone();
        let report = |source| DeploymentRunError::Report { deployment: deployment(), source };
        let Some(parameters) = self.parameters.clone() else {
            return Err(DeploymentRunError::Parameters { deployment: deployment() });
        };
        for (_, upstream) in &self.upstreams {
            if !self.ctx.unless_cancelled(upstream.completed()).await? {
                return Err(DeploymentRunError::NotReady {
                    deployment: deployment(),
                    upstream: upstream.id(),
                });
            }
        }
        let run = &self.ctx.run;
        let (client, patience) = (run.engine.client(), run.engine.patience());
        let Some(found) = self.find().await.map_err(report)? else {
            return Err(DeploymentRunError::Missing { deployment: deployment() });
        };
        let parent = self.new_parent();
        let parent =
            patience.insist("create a called deployment's task run", || client.create_task_run(&parent));
        let parent = parent.await.map_err(report)?;
        let state =
            NewState::first(StateType::Scheduled).scheduled_at(self.at.unwrap_or_else(Timestamp::now));
        // A call whose answer is lost is repeated, and must not make a second run. A flow that is run again makes one.
        let key = self.idempotency_key.clone().unwrap_or_else(|| format!("{}-{}", parent.id, run.attempt));
        let new = NewDeploymentRun {
            state: Some(state),
            name: self.name.clone(),
            parameters,
            tags: self.tags.clone(),
            idempotency_key: Some(key),
            parent_task_run_id: Some(parent.id),
            job_variables: self.job_variables.clone(),
        };
        let create = || client.create_deployment_run(found.id, &new);
        let created = patience.insist("create a run of a deployment", create).await.map_err(report)?;
        self.ctx.debug(format!("Created run '{}' of deployment '{}'", created.name, self.deployment));
        Ok((created, parent.id))
    }

    async fn find(&self) -> Result<Option<Deployment>, Error> {
        let Some((flow, name)) = self.deployment.split_once('/') else { return Ok(None) };
        let run = &self.ctx.run;
        let read = || run.engine.client().read_deployment_by_name(flow, name);
        run.engine.patience().insist("find a deployment", read).await
    }

    fn new_parent(&self) -> NewTaskRun {
        let run = &self.ctx.run;
        let task_key = format!("prefect.deployments.flow_runs.run_deployment.{}", slug(&self.deployment));
        let number = run.count_call(&task_key);
        let mut inputs = TaskInputs::new();
        if let Some(task) = &self.ctx.task {
            inputs.insert("__parents__".to_owned(), vec![TaskInput::TaskRun { id: task.id }]);
        }
        for (name, upstream) in &self.upstreams {
            inputs.entry(name.clone()).or_default().push(TaskInput::TaskRun { id: upstream.id() });
        }
        NewTaskRun {
            state: NewState::first(StateType::Pending),
            name: format!("{}-{number}", self.deployment),
            flow_run_id: run.id,
            task_key,
            dynamic_key: number.to_string(),
            task_version: None,
            empirical_policy: TaskRunPolicy::default(),
            tags: Vec::new(),
            task_inputs: inputs,
        }
    }

    async fn run(self) -> Result<Done<FlowRun>, DeploymentRunError> {
        let (created, parent) = self.begin().await?;
        let run = &self.ctx.run;
        let client = run.engine.client();
        loop {
            match client.read_flow_run(created.id).await {
                Ok(now) if now.state_type.is_some_and(StateType::is_final) => {
                    return self.ended(now, parent);
                }
                Ok(_) => {}
                Err(error) if error.is_transient() => {
                    tracing::warn!(
                        error = chain(&error),
                        "nobody can tell how a called deployment's run stands"
                    );
                }
                Err(source) => {
                    return Err(DeploymentRunError::Report { deployment: self.deployment, source });
                }
            }
            self.ctx.unless_cancelled(tokio::time::sleep(run.engine.wait_poll())).await?;
        }
    }

    fn ended(self, run: FlowRun, parent: TaskRunId) -> Result<Done<FlowRun>, DeploymentRunError> {
        if run.state_type == Some(StateType::Completed) {
            let (ended, handle) = Handle::new(parent);
            ended.send_replace(Outcome::Completed);
            return Ok(Done { value: run, handle });
        }
        let message = run.state.as_ref().and_then(|state| state.message.clone()).unwrap_or_default();
        let state = run.state_name.unwrap_or_else(|| "unknown".to_owned());
        Err(DeploymentRunError::Ended {
            deployment: self.deployment,
            run: run.name,
            id: run.id,
            state,
            message,
        })
    }
}

impl IntoFuture for DeploymentRun {
    type Output = Result<Done<FlowRun>, DeploymentRunError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A name as Python's `slugify` makes it: lower-case letters, digits, and dashes between them.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}
