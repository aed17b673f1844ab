//! What a flow or a task knows about its run, and what it may ask of the engine.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use prefect_api::event::{Event, Resource};
use prefect_api::flow_run::FlowRun;
use prefect_api::id::{DeploymentId, FlowRunId, TaskRunId};
use prefect_api::record::NewArtifact;
use prefect_client::Client;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deployment_run::DeploymentRun;
use crate::engine::Engine;
use crate::error::{ArtifactError, Cancelled, EventError, LimitError, RecordError};
use crate::flow::Flow;
use crate::pause::{Kind, Pause};
use crate::report::{Level, Origin, Progress, check_event, check_key, link};
use crate::results::ResultError;
use crate::slots::Slots;
use crate::subflow::Subflow;
use crate::task::Task;

/// The run that code belongs to: a flow run, and inside a task its task run too. Cheap to clone. Log lines,
/// artifacts, nested tasks and subflows belong to the run of the context that they are made with.
#[derive(Debug, Clone)]
pub struct Context {
    pub(crate) run: Arc<Run>,
    pub(crate) task: Option<Arc<TaskScope>>,
}

/// One attempt of a flow run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) engine: Arc<Engine>,
    pub(crate) id: FlowRunId,
    pub(crate) name: String,
    pub(crate) flow_name: String,
    pub(crate) deployment: Option<DeploymentId>,
    /// The server's run count: 1 in the first run.
    pub(crate) attempt: u32,
    /// What events about the run relate to: the run itself first.
    pub(crate) related: Vec<Resource>,
    /// Fires when the work is to stop.
    pub(crate) cancellation: CancellationToken,
    /// Fires when the work was given its time to stop and is dropped.
    pub(crate) abort: CancellationToken,
    /// Submitted tasks.
    pub(crate) tasks: TaskTracker,
    /// Runs of subflows.
    pub(crate) subflows: TaskTracker,
    /// Fires when the run has suspended itself.
    pub(crate) suspended: CancellationToken,
    /// The deployment's slot went to others, since the run was paused.
    pub(crate) gave_slot_back: AtomicBool,
    /// Calls of subflows so far, by task key; and of pauses.
    pub(crate) calls: Mutex<HashMap<String, u32>>,
}

impl Run {
    /// The number of this call of a task key, from 0.
    pub(crate) fn count_call(&self, task_key: &str) -> u32 {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let next = calls.entry(task_key.to_owned()).or_default();
        let number = *next;
        *next += 1;
        number
    }
}

/// The task run that a context is inside of.
#[derive(Debug)]
pub(crate) struct TaskScope {
    pub(crate) id: TaskRunId,
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
}

impl TaskScope {
    /// What events of its code relate to besides what those of the flow do.
    fn related(&self) -> impl Iterator<Item = Resource> {
        let tags = self.tags.iter().map(|tag| Resource::of("tag", tag).role("tag"));
        std::iter::once(Resource::of("task-run", self.id).role("task-run").named(&self.name)).chain(tags)
    }
}

impl Context {
    pub(crate) const fn of_flow(run: Arc<Run>) -> Self {
        Self { run, task: None }
    }

    pub(crate) fn of_task(&self, scope: TaskScope) -> Self {
        Self { run: Arc::clone(&self.run), task: Some(Arc::new(scope)) }
    }

    /// The flow run's id.
    pub fn flow_run_id(&self) -> FlowRunId {
        self.run.id
    }

    /// The flow run's name.
    pub fn flow_run_name(&self) -> &str {
        &self.run.name
    }

    /// The flow's name.
    pub fn flow_name(&self) -> &str {
        &self.run.flow_name
    }

    /// The deployment that the run was made from.
    pub fn deployment_id(&self) -> Option<DeploymentId> {
        self.run.deployment
    }

    /// How often the flow run has been running, this time included: above 1 in a retry.
    pub fn attempt(&self) -> u32 {
        self.run.attempt
    }

    /// The task run, inside a task.
    pub fn task_run_id(&self) -> Option<TaskRunId> {
        self.task.as_ref().map(|task| task.id)
    }

    /// The client that the engine uses, for what has no method here.
    pub fn client(&self) -> &Client {
        self.run.engine.client()
    }

    /// Writes a log line at level DEBUG.
    pub fn debug(&self, message: impl Display) {
        self.log(Level::Debug, message.to_string());
    }

    /// Writes a log line at level INFO.
    pub fn info(&self, message: impl Display) {
        self.log(Level::Info, message.to_string());
    }

    /// Writes a log line at level WARNING.
    pub fn warn(&self, message: impl Display) {
        self.log(Level::Warning, message.to_string());
    }

    /// Writes a log line at level ERROR.
    pub fn error(&self, message: impl Display) {
        self.log(Level::Error, message.to_string());
    }

    pub(crate) fn log(&self, level: Level, message: String) {
        let name = self.task.as_ref().map_or(self.run.name.as_str(), |task| task.name.as_str());
        let origin = Origin { flow_run: self.run.id, task_run: self.task_run_id(), name };
        self.run.engine.logs().write(level, origin, message);
    }

    /// A Prefect variable; `None` if the server has none of that name. Read once per process.
    pub async fn variable<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RecordError> {
        let engine = &self.run.engine;
        engine.variables().get(engine.client(), engine.patience(), name).await
    }

    /// The value of a Prefect Secret block.
    pub async fn secret(&self, name: &str) -> Result<SecretString, RecordError> {
        crate::record::secret(self.client(), self.run.engine.patience(), name).await
    }

    /// The fields of a block of any type, `TYPE/NAME`, secret ones included; in place of blocks that it refers to stand
    /// their fields. Read each time.
    pub async fn block<T: DeserializeOwned>(&self, block: &str) -> Result<T, RecordError> {
        crate::block::fields(self.client(), self.run.engine.patience(), block).await
    }

    /// Tells the Prefect server of something that happened, for automations and whoever watches its events. It relates to
    /// the run, and what the run relates to, besides what it names itself.
    pub async fn emit_event(&self, event: Event) -> Result<(), EventError> {
        let task = self.task.as_deref().into_iter().flat_map(TaskScope::related);
        let own = event.resource.id();
        let mut related: Vec<Resource> = Vec::new();
        for resource in self.run.related.iter().cloned().chain(task) {
            let is_known = related.iter().any(|known| known.id() == resource.id());
            if !is_known && resource.id() != own {
                related.push(resource);
            }
        }
        let event = event.related(related);
        check_event(&event)?;
        self.run.engine.events().send(event).await;
        Ok(())
    }

    /// Takes so many slots of each of these global concurrency limits and holds them until the result is dropped; waits
    /// until they are free, unless the run is cancelled. Limits that do not exist limit nothing, with a warning. Cancel
    /// safe, so that [`tokio::time::timeout`] bounds the waiting.
    pub async fn concurrency<N: Into<String>>(
        &self,
        names: impl IntoIterator<Item = N>,
        slots: u32,
    ) -> Result<Slots, LimitError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let holder = match &self.task {
            Some(task) => json!({"type": "task_run", "id": task.id}),
            None => json!({"type": "flow_run", "id": self.run.id}),
        };
        let taken = self.run.engine.limits().take(names.clone(), slots, holder);
        match self.unless_newly_cancelled(taken).await? {
            Ok(Some(slots)) => Ok(slots),
            Ok(None) => {
                self.warn_of_missing(&names);
                Ok(Slots::none())
            }
            Err(source) => Err(LimitError::Refused { names, slots, source }),
        }
    }

    /// Takes so many slots of each of these limits, which come back by themselves at the rates of the limits; waits
    /// until there are so many, unless the run is cancelled. Limits that do not exist limit nothing, with a warning.
    pub async fn rate_limit<N: Into<String>>(
        &self,
        names: impl IntoIterator<Item = N>,
        slots: u32,
    ) -> Result<(), LimitError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let taken = self.run.engine.limits().take_rate(&names, slots);
        match self.unless_newly_cancelled(taken).await? {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.warn_of_missing(&names);
                Ok(())
            }
            Err(source) => Err(LimitError::Refused { names, slots, source }),
        }
    }

    fn warn_of_missing(&self, names: &[String]) {
        let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
        self.warn(format!("Concurrency limits [{}] do not exist - skipping acquisition.", quoted.join(", ")));
    }

    /// Like [`Self::unless_cancelled`], but what is begun after the cancellation goes to its end: it undoes.
    async fn unless_newly_cancelled<F: Future>(&self, future: F) -> Result<F::Output, Cancelled> {
        if self.is_cancelled() { Ok(future.await) } else { self.unless_cancelled(future).await }
    }

    /// Creates a Markdown artifact. Like all artifacts it is queued and sent in order; a server that is away
    /// delays it only.
    pub async fn markdown(
        &self,
        key: &str,
        text: impl Into<String>,
        description: Option<&str>,
    ) -> Result<(), ArtifactError> {
        self.artifact("markdown", key, Value::String(text.into()), description).await
    }

    /// Creates a link artifact.
    pub async fn link(
        &self,
        key: &str,
        url: &str,
        text: &str,
        description: Option<&str>,
    ) -> Result<(), ArtifactError> {
        let text = (!text.is_empty()).then_some(text);
        self.artifact("markdown", key, Value::String(link(url, text)), description).await
    }

    /// Creates a table artifact from a sequence of rows, each a struct or a map.
    pub async fn table<R: Serialize + ?Sized>(
        &self,
        key: &str,
        rows: &R,
        description: Option<&str>,
    ) -> Result<(), ArtifactError> {
        let rows = serde_json::to_string(rows)
            .map_err(|source| ArtifactError::Table { key: key.to_owned(), source })?;
        self.artifact("table", key, Value::String(rows), description).await
    }

    /// Creates an image artifact: the UI shows what is at `url`.
    pub async fn image(&self, key: &str, url: &str, description: Option<&str>) -> Result<(), ArtifactError> {
        self.artifact("image", key, Value::String(url.to_owned()), description).await
    }

    /// Creates a progress artifact at 0 %.
    pub fn progress(&self, key: &str, description: Option<&str>) -> Result<Progress, ArtifactError> {
        let artifact = self.new_artifact("progress", key, json!(0.0), description)?;
        Ok(self.run.engine.start_progress(key, artifact))
    }

    async fn artifact(
        &self,
        kind: &str,
        key: &str,
        data: Value,
        description: Option<&str>,
    ) -> Result<(), ArtifactError> {
        let artifact = self.new_artifact(kind, key, data, description)?;
        self.run.engine.artifacts().send(artifact).await;
        Ok(())
    }

    fn new_artifact(
        &self,
        kind: &str,
        key: &str,
        data: Value,
        description: Option<&str>,
    ) -> Result<NewArtifact, ArtifactError> {
        check_key(key)?;
        Ok(NewArtifact {
            key: Some(key.to_owned()),
            kind: kind.to_owned(),
            description: description.map(str::to_owned),
            data,
            flow_run_id: Some(self.run.id),
            task_run_id: self.task_run_id(),
        })
    }

    /// Fires when the work is to stop: the run was cancelled, or the process is asked to end. The flow has
    /// then half a minute to undo what must not stay and to return; after that it is dropped where it stands.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.run.cancellation
    }

    /// Whether the work is to stop.
    pub fn is_cancelled(&self) -> bool {
        self.run.cancellation.is_cancelled()
    }

    /// Waits until the work is to stop.
    pub async fn cancelled(&self) {
        self.run.cancellation.cancelled().await;
    }

    /// The result of a future, unless the work is to stop first: then the future is dropped.
    pub async fn unless_cancelled<F: Future>(&self, future: F) -> Result<F::Output, Cancelled> {
        self.run.cancellation.run_until_cancelled(future).await.ok_or(Cancelled)
    }

    /// A run of a deployment, `FLOW/DEPLOYMENT`: it goes to the deployment's work pool.
    pub fn run_deployment(&self, deployment: impl Into<String>) -> DeploymentRun {
        DeploymentRun::new(self.clone(), deployment.into())
    }

    /// Pauses the flow run until somebody resumes it; the process waits. Tasks that are at work go on.
    pub fn pause(&self) -> Pause {
        Pause::new(self.clone(), Kind::Pause)
    }

    /// Suspends the flow run: this process ends, and when somebody resumes the run, another one runs the flow from its
    /// beginning, where this suspension has then no effect. The code behind it is never reached in this process; tasks
    /// that were submitted go to their end. Only runs of deployments can be suspended, and no subflows.
    pub fn suspend(&self) -> Pause {
        Pause::new(self.clone(), Kind::Suspend)
    }

    /// The result of a run that has completed and kept it as JSON, of a Rust flow or a Python one
    /// (`persist_result=True, result_serializer="json"`), such as [`Self::run_deployment`] gives it.
    pub async fn result_of<T: DeserializeOwned>(&self, run: &FlowRun) -> Result<T, ResultError> {
        let reference = run.state.as_ref().and_then(|state| state.data.as_ref());
        let (text, key) = self.run.engine.results().read(reference).await?;
        serde_json::from_str(&text).map_err(|source| ResultError::Malformed { key, source })
    }

    /// A task of this name. The name is its identity over all runs of the flow; what differs between calls
    /// belongs into the run name.
    pub fn task(&self, name: impl Into<String>) -> Task {
        Task::new(self.clone(), name.into())
    }

    /// A run of another flow inside this one.
    pub fn subflow<P, T>(&self, flow: &Flow<P, T>, parameters: P) -> Subflow<P, T>
    where
        P: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
        T: Send + 'static,
    {
        Subflow::new(self.clone(), flow.clone(), parameters)
    }
}
