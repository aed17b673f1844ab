//! Tasks: a piece of a flow with states, retries, tags and a place in the graph of its own.
//!
//! A task run is reported by events only; the server neither allows nor refuses it. Whatever happens to the
//! future of a task (an error, a panic, a timeout, being dropped), its last state is reported and its slots
//! are given back.

mod handle;
mod persisted;
mod reporter;
mod run;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prefect_api::flow_run::{TaskInput, TaskRunPolicy};
use prefect_api::task_event::{DELAYS_LIMIT, TaskRunRecord};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use handle::Outcome;
pub use handle::{Done, Handle, Submitted, Upstream};
use persisted::Keep;
pub use persisted::Persisted;
pub(crate) use reporter::py_state;

use crate::context::Context;
use crate::error::{BoxError, TaskError};
use crate::hook::{Entered, Hook, Occasion};
use crate::results::Cache;
use reporter::Reporter;
use run::{Held, TaskRun};

/// The waits before retries: the n-th before the n-th retry, the last before all further ones.
#[derive(Debug, Clone, Default)]
pub struct Delays(Vec<Duration>);

impl Delays {
    pub(crate) fn before(&self, retry: u32) -> Duration {
        let index = usize::try_from(retry.saturating_sub(1)).unwrap_or(usize::MAX);
        self.0.get(index).or_else(|| self.0.last()).copied().unwrap_or_default()
    }
}

impl From<Duration> for Delays {
    fn from(delay: Duration) -> Self {
        Self(vec![delay])
    }
}

impl From<Vec<Duration>> for Delays {
    fn from(delays: Vec<Duration>) -> Self {
        Self(delays)
    }
}

impl<const N: usize> From<[Duration; N]> for Delays {
    fn from(delays: [Duration; N]) -> Self {
        Self(delays.to_vec())
    }
}

/// A task that has not been started; made by [`Context::task`]. A clone is another run of the task.
#[derive(Clone)]
#[must_use = "a task does nothing until it is run or submitted"]
pub struct Task {
    ctx: Context,
    name: String,
    run_name: Option<String>,
    tags: Vec<String>,
    retries: u32,
    delays: Delays,
    jitter: f64,
    retry_if: Option<Arc<RetryIf>>,
    timeout: Option<Duration>,
    upstreams: Vec<(String, Handle)>,
    hooks: Vec<Hook<Context>>,
}

type RetryIf = dyn Fn(&BoxError) -> bool + Send + Sync;

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("run_name", &self.run_name)
            .field("tags", &self.tags)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

impl Task {
    pub(crate) const fn new(ctx: Context, name: String) -> Self {
        Self {
            ctx,
            name,
            run_name: None,
            tags: Vec::new(),
            retries: 0,
            delays: Delays(Vec::new()),
            jitter: 0.0,
            retry_if: None,
            timeout: None,
            upstreams: Vec::new(),
            hooks: Vec::new(),
        }
    }

    /// The name of this run of the task; otherwise the task's with three characters that tell runs apart.
    pub fn run_name(mut self, name: impl Into<String>) -> Self {
        self.run_name = Some(name.into());
        self
    }

    /// One more tag. A concurrency limit of a tag is held while the task is at work.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// More tags.
    pub fn tags<I: IntoIterator<Item: Into<String>>>(mut self, tags: I) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Run it again, so many times, when it fails or takes too long; with one delay, or one for each retry.
    pub fn retries(mut self, retries: u32, delays: impl Into<Delays>) -> Self {
        self.retries = retries;
        self.delays = delays.into();
        self
    }

    /// Makes each delay before a retry longer, by a random part of it of at most `factor`, so that runs that failed
    /// together do not come again together.
    pub const fn retry_jitter(mut self, factor: f64) -> Self {
        self.jitter = factor;
        self
    }

    /// Run it again only after errors that this says yes to.
    pub fn retry_if(mut self, condition: impl Fn(&BoxError) -> bool + Send + Sync + 'static) -> Self {
        self.retry_if = Some(Arc::new(condition));
        self
    }

    /// How long one attempt may take; then it is dropped where it stands.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Calls `hook` whenever the task run is at work: in each attempt, before the task's own code. `name` is what
    /// the log calls it.
    pub fn on_running<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Running, name, hook)
    }

    /// Calls `hook` when the task run has completed, before those that wait for it go on.
    pub fn on_completion<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Completion, name, hook)
    }

    /// Calls `hook` when the task run has failed and is not tried again.
    pub fn on_failure<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Failure, name, hook)
    }

    fn on<F, R, E>(mut self, on: Occasion, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.hooks.push(Hook::new(on, name, hook));
        self
    }

    /// Its parameter `name` comes from another task: an edge in the graph. It starts when that one has ended,
    /// and never if that one did not complete.
    pub fn input(mut self, name: impl Into<String>, upstream: &impl Upstream) -> Self {
        self.upstreams.push((name.into(), upstream.handle().clone()));
        self
    }

    /// It starts when another task has ended, and never if that one did not complete.
    pub fn wait_for(self, upstream: &impl Upstream) -> Self {
        self.input("wait_for", upstream)
    }

    /// It starts when all these have ended, and never if one of them did not complete.
    pub fn wait_for_all<'a, U: Upstream + 'a>(self, upstreams: impl IntoIterator<Item = &'a U>) -> Self {
        upstreams.into_iter().fold(self, Self::wait_for)
    }

    /// Runs it here: `body` is called once for each attempt, with the context of the task run. It may borrow;
    /// several such futures run concurrently when they are awaited together.
    pub async fn run<T, E, F, R>(self, body: F) -> Result<Done<T>, TaskError>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<BoxError>,
    {
        self.run_kept(body, None).await
    }

    async fn run_kept<T, E, F, R>(self, body: F, keep: Option<Keep<T>>) -> Result<Done<T>, TaskError>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<BoxError>,
    {
        let (task, handle) = self.prepare();
        task.run(body, None, handle, keep).await
    }

    /// Starts it at once, beside the flow, and gives a future of its result. At most so many submitted tasks
    /// are at work at once as [`crate::Program::concurrency`] says. The flow does not end before they have.
    pub fn submit<T, E, F, R>(self, body: F) -> Submitted<T>
    where
        F: FnMut(Context) -> R + Send + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Into<BoxError>,
    {
        self.submit_kept(body, None)
    }

    fn submit_kept<T, E, F, R>(self, body: F, keep: Option<Keep<T>>) -> Submitted<T>
    where
        F: FnMut(Context) -> R + Send + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Into<BoxError>,
    {
        let run = Arc::clone(&self.ctx.run);
        let (task, handle) = self.prepare();
        let (name, kept) = (task.reporter.name().to_owned(), handle.clone());
        let permits = Arc::clone(run.engine.permits());
        let abort = run.abort.clone();
        let join = run.tasks.spawn(async move {
            // On the heap, which is free again when it has ended, however long its result is waited for.
            let running = Box::pin(task.run(body, Some(permits), handle, keep));
            // Dropped inside, so that its last state is reported before the engine closes.
            abort.run_until_cancelled_owned(running).await
        });
        Submitted::new(name, kept, join)
    }

    /// Submits a run of this task for each item; the results come in the order of the items.
    pub fn map<I, T, E, F, R>(self, items: impl IntoIterator<Item = I>, body: F) -> Vec<Submitted<T>>
    where
        I: Clone + Send + 'static,
        F: Fn(Context, I) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Into<BoxError>,
    {
        let body = Arc::new(body);
        let submit = |item: I| {
            let body = Arc::clone(&body);
            self.clone().submit(move |task| body(task, item.clone()))
        };
        items.into_iter().map(submit).collect()
    }

    /// Like [`Self::run`], for code that blocks its thread: it has one of its own. Such code cannot be dropped: it must look
    /// at [`Context::is_cancelled`], and a timeout leaves it behind.
    pub async fn run_blocking<T, E, F>(self, body: F) -> Result<Done<T>, TaskError>
    where
        F: Fn(Context) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: Into<BoxError>,
    {
        self.run(on_a_thread(body)).await
    }

    /// Stores the result, as JSON, so that it outlives the run: the state of the task run says where it is. A result
    /// that cannot be stored is told in the log, and fails nothing.
    pub const fn persist_result(self) -> Persisted {
        Persisted { task: self, cache: Cache::none() }
    }

    /// Stores the result and takes that of an equal run instead, if there is one: its state is then `Cached`, and its
    /// code is not run.
    pub const fn cached(self, cache: Cache) -> Persisted {
        Persisted { task: self, cache }
    }

    fn prepare(self) -> (TaskRun, Handle) {
        let run = &self.ctx.run;
        let key_space = format!("{}/{}", run.flow_name, self.name);
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, key_space.as_bytes()).simple().to_string();
        let task_key = format!("{}-{}", self.name, digest.get(..8).unwrap_or(&digest));
        let dynamic_key = Uuid::new_v4().to_string();
        let short = dynamic_key.get(..3).unwrap_or(&dynamic_key);
        let mut record =
            TaskRunRecord::new(format!("{}-{short}", self.name), task_key, dynamic_key.as_str(), run.attempt);
        record.tags.clone_from(&self.tags);
        record.policy = TaskRunPolicy {
            retries: self.retries,
            retry_delay: self.delays.0.iter().take(DELAYS_LIMIT).copied().collect(),
            ..TaskRunPolicy::default()
        };
        if let Some(parent) = &self.ctx.task {
            record.inputs.insert("__parents__".to_owned(), vec![TaskInput::TaskRun { id: parent.id }]);
        }
        for (name, upstream) in &self.upstreams {
            record.inputs.entry(name.clone()).or_default().push(TaskInput::TaskRun { id: upstream.id() });
        }
        let (ended, handle) = Handle::new(record.id);
        let reporter = Reporter::new(&self.ctx, record, ended);
        let stop = if self.ctx.is_cancelled() { CancellationToken::new() } else { run.cancellation.clone() };
        let task = TaskRun {
            stop,
            ctx: self.ctx,
            reporter,
            run_name: self.run_name,
            tags: self.tags,
            retries: self.retries,
            delays: self.delays,
            jitter: self.jitter,
            retry_if: self.retry_if,
            timeout: self.timeout,
            upstreams: self.upstreams.into_iter().map(|(_, upstream)| upstream).collect(),
            hooks: self.hooks,
            held: Held::default(),
        };
        (task, handle)
    }
}

/// Code that blocks its thread, on one of its own.
fn on_a_thread<T, E, F>(body: F) -> impl FnMut(Context) -> BoxFuture<'static, Result<T, BoxError>>
where
    F: Fn(Context) -> Result<T, E> + Send + Sync + 'static,
    T: Send + 'static,
    E: Into<BoxError>,
{
    let body = Arc::new(body);
    move |task| {
        let body = Arc::clone(&body);
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || body(task).map_err(Into::into)).await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => Err(BoxError::from(error)),
                },
            }
        })
    }
}
