//! One task run from Pending to its end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use prefect_api::id::TaskRunId;
use prefect_api::task_event::TaskState;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::persisted::Keep;
use super::reporter::Reporter;
use super::{Delays, Done, Handle, RetryIf};
use crate::context::Context;
use crate::engine::ABORTED;
use crate::error::{BoxError, Cancelled, TaskCause, TaskError, chain, panic_message};
use crate::hook::{Entered, Hook, Occasion, run_all};
use crate::report::Level;
use crate::results::{Cache, Codec, Identity, Key};
use crate::slots::{Slots, Taken};

/// A task run about to start.
pub(super) struct TaskRun {
    pub(super) ctx: Context,
    pub(super) reporter: Reporter,
    pub(super) run_name: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) retries: u32,
    pub(super) delays: Delays,
    /// The largest part by which a delay is made longer.
    pub(super) jitter: f64,
    pub(super) retry_if: Option<Arc<RetryIf>>,
    pub(super) timeout: Option<Duration>,
    pub(super) upstreams: Vec<Handle>,
    pub(super) hooks: Vec<Hook<Context>>,
    pub(super) held: Held,
    /// Ends its waiting. Never fires for a task that is started after the cancellation: it rolls back.
    pub(super) stop: CancellationToken,
}

/// What a task run that is at work holds; given back after its last state, and its hooks for that.
#[derive(Debug, Default)]
pub(super) struct Held {
    _permit: Option<OwnedSemaphorePermit>,
    _slots: Option<Slots>,
}

impl TaskRun {
    pub(super) async fn run<T, E, F, R>(
        mut self,
        body: F,
        permits: Option<Arc<Semaphore>>,
        handle: Handle,
        keep: Option<Keep<T>>,
    ) -> Result<Done<T>, TaskError>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<BoxError>,
    {
        let outcome = self.outcome(body, permits, keep).await;
        let last = outcome.as_ref().map_or_else(last_state, |(_, last)| last.clone());
        self.reporter.close(&last).await;
        self.call_hooks(&last).await;
        self.reporter.tell_end();
        match outcome {
            Ok((value, _)) => Ok(Done { value, handle }),
            Err(cause) => Err(TaskError { name: self.reporter.name().to_owned(), handle, cause }),
        }
    }

    async fn call_hooks(&self, state: &TaskState) {
        let (kind, ctx) = (state.kind(), self.reporter.context());
        let Some(on) = Occasion::of(kind) else { return };
        let message = state.message().to_owned();
        let entered = Entered { kind, name: state.name().to_owned(), message };
        let hooks = self.hooks.iter().filter(|hook| hook.is_for(on));
        let due: Vec<_> = hooks.map(|hook| hook.due(ctx.clone(), &entered)).collect();
        if !due.is_empty() {
            // Bounded by what drops the task: its flow's end.
            run_all(ctx, due, &entered, std::future::pending()).await;
        }
    }

    /// All but the last state; that one is given if the run is completed.
    async fn outcome<T, E, F, R>(
        &mut self,
        body: F,
        permits: Option<Arc<Semaphore>>,
        keep: Option<Keep<T>>,
    ) -> Result<(T, TaskState), TaskCause>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<BoxError>,
    {
        self.reporter.enter(&TaskState::Pending).await;
        for upstream in &self.upstreams {
            if !self.until_cancelled(upstream.completed()).await? {
                return Err(TaskCause::NotReady { upstream: upstream.id() });
            }
        }
        // A semaphore that is never closed always gives a permit.
        let permit = match permits {
            Some(permits) => self.until_cancelled(permits.acquire_owned()).await?.ok(),
            None => None,
        };
        self.held = Held { _permit: permit, _slots: self.take_slots().await? };
        if let Some(name) = self.run_name.take() {
            self.reporter.rename(name);
        }
        self.start(TaskState::Running).await;
        let Some(Keep { codec, cache }) = keep else {
            return Ok((self.attempts(body).await?, TaskState::Completed { result: None }));
        };
        let key = self.key(cache);
        if let Some(key) = key.as_ref().filter(|key| key.is_shared)
            && let Some((value, result)) = self.until_cancelled(self.find(key, codec)).await?
        {
            return Ok((value, TaskState::Cached { result }));
        }
        let value = self.attempts(body).await?;
        let result = match key {
            // To the end: what is done is done.
            Some(key) => {
                // Not kept over an await: results need not be `Sync`.
                let text = (codec.encode)(&value);
                self.keep(key, text).await
            }
            None => None,
        };
        Ok((value, TaskState::Completed { result }))
    }

    /// Under which the result is stored; `None` if it cannot be.
    fn key(&self, cache: Cache) -> Option<Key> {
        let run = &self.ctx.run;
        let identity = Identity {
            flow: &run.flow_name,
            task: self.reporter.task(),
            version: run.engine.version(),
            run: run.id,
        };
        let key = cache.resolve(identity);
        key.inspect_err(|error| {
            let error = chain(error);
            let line =
                format!("Error encountered when computing cache key - result will not be persisted: {error}");
            self.log(Level::Error, line);
        })
        .ok()
    }

    /// The result of an equal run, and where it is.
    async fn find<T>(&self, key: &Key, codec: Codec<T>) -> Option<(T, Value)> {
        let found = match self.ctx.run.engine.results().find(&key.name).await {
            Ok(found) => found?,
            Err(error) => {
                self.log(Level::Warning, format!("The cached result cannot be read: {}", chain(&*error)));
                return None;
            }
        };
        let (text, reference) = found;
        match (codec.decode)(&text) {
            Ok(value) => Some((value, reference)),
            Err(error) => {
                self.log(Level::Warning, format!("The cached result is of another form: {error}"));
                None
            }
        }
    }

    /// Stores the result; says where it is.
    async fn keep(&self, key: Key, text: Result<String, serde_json::Error>) -> Option<Value> {
        let kept = match text {
            Ok(text) => self.ctx.run.engine.results().keep(&key.name, text, key.lasts).await,
            Err(error) => Err(error.into()),
        };
        kept.inspect_err(|error| {
            self.log(Level::Error, format!("The result was not persisted: {}", chain(&**error)));
        })
        .ok()
    }

    async fn attempts<T, E, F, R>(&mut self, mut body: F) -> Result<T, TaskCause>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<BoxError>,
    {
        let mut retry = 0;
        loop {
            let cause = match self.attempt(&mut body).await {
                Ok(value) => return Ok(value),
                Err(cause) => cause,
            };
            if self.stop.is_cancelled() {
                let told = matches!(&cause, TaskCause::Failed(error) if error.is::<Cancelled>());
                let line = if told {
                    format!("Crash detected! {ABORTED}")
                } else {
                    format!("Task run ended: {}", chain(&cause))
                };
                self.log(Level::Error, line);
                return Err(TaskCause::Cancelled);
            }
            retry += 1;
            if retry > self.retries || !self.is_worth_a_retry(&cause) {
                self.log_end(&cause);
                return Err(cause);
            }
            if let Err(cause) = self.prepare_retry(retry, &cause).await {
                self.log(Level::Error, format!("Crash detected! {ABORTED}"));
                return Err(cause);
            }
        }
    }

    async fn attempt<T, E, F, R>(&self, body: &mut F) -> Result<T, TaskCause>
    where
        F: FnMut(Context) -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<BoxError>,
    {
        let ctx = self.reporter.context().clone();
        // After a panic nothing of the attempt is used again but what the caller's closure borrows; that is
        // the same for a panic in any task.
        let attempt = AssertUnwindSafe(async { body(ctx).await }).catch_unwind();
        let ended = match self.timeout {
            Some(timeout) => {
                tokio::time::timeout(timeout, attempt).await.map_err(|_| TaskCause::TimedOut(timeout))?
            }
            None => attempt.await,
        };
        match ended {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(TaskCause::Failed(error.into())),
            Err(panic) => Err(TaskCause::Panicked(panic_message(&*panic))),
        }
    }

    fn is_worth_a_retry(&self, cause: &TaskCause) -> bool {
        match cause {
            TaskCause::Failed(error) => self.retry_if.as_ref().is_none_or(|condition| condition(error)),
            TaskCause::TimedOut(_) => true,
            _ => false,
        }
    }

    async fn prepare_retry(&mut self, retry: u32, cause: &TaskCause) -> Result<(), TaskCause> {
        let delay = lengthened(self.delays.before(retry), self.jitter, random());
        let when = if delay.is_zero() {
            "immediately".to_owned()
        } else {
            format!("{} second(s) from now", delay.as_secs_f64())
        };
        let line = format!(
            "Task run failed with exception: {} - Retry {retry}/{} will start {when}",
            chain(cause),
            self.retries
        );
        self.log(Level::Info, line);
        if !delay.is_zero() {
            let wait = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
            let at = Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX);
            self.reporter.enter(&TaskState::AwaitingRetry { at }).await;
            self.until_cancelled(tokio::time::sleep(delay)).await?;
        }
        self.start(TaskState::Retrying).await;
        Ok(())
    }

    async fn start(&mut self, state: TaskState) {
        self.reporter.enter(&state).await;
        self.call_hooks(&state).await;
    }

    async fn take_slots(&self) -> Result<Option<Slots>, TaskCause> {
        if self.tags.is_empty() {
            return Ok(None);
        }
        let limits = self.ctx.run.engine.limits();
        let id: TaskRunId = self.reporter.id();
        // On the heap: few tasks have tags, and all have room for this.
        let taking = Box::pin(limits.take_tags(&self.tags, id));
        match self.until_cancelled(taking).await? {
            Ok(Taken::Held(slots)) => Ok(Some(slots)),
            Ok(Taken::Unlimited { first }) => {
                if first {
                    let tags = &self.tags;
                    self.log(
                        Level::Warning,
                        format!(
                            "No concurrency limit exists for any of the tags {tags:?}; nothing is limited."
                        ),
                    );
                }
                Ok(None)
            }
            Err(source) => Err(TaskCause::Slots { tags: self.tags.clone(), source }),
        }
    }

    async fn until_cancelled<F: Future>(&self, future: F) -> Result<F::Output, TaskCause> {
        self.stop.run_until_cancelled(future).await.ok_or(TaskCause::Cancelled)
    }

    fn log_end(&self, cause: &TaskCause) {
        let line = match cause {
            TaskCause::TimedOut(_) | TaskCause::Panicked(_) => last_state(cause).message().to_owned(),
            _ => format!("Task run failed with exception: {}", chain(cause)),
        };
        let exhausted = if self.retries > 0 { " - Retries are exhausted" } else { "" };
        self.log(Level::Error, format!("{line}{exhausted}"));
    }

    fn log(&self, level: Level, message: String) {
        self.reporter.context().log(level, message);
    }
}

/// A delay that is longer by the part `random` (0 to 1) of the part `jitter` of it.
fn lengthened(delay: Duration, jitter: f64, random: f64) -> Duration {
    let factor = 1.0 + jitter.max(0.0) * random;
    Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(delay)
}

/// A number from 0 to 1.
fn random() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    // The lowest bits: those of the version are above them.
    let [.., a, b] = high.to_be_bytes();
    f64::from(u16::from_be_bytes([a & 0x0f, b])) / f64::from(0x0fff_u16)
}

fn last_state(cause: &TaskCause) -> TaskState {
    match cause {
        TaskCause::Failed(_) | TaskCause::Slots { .. } => {
            TaskState::Failed { message: format!("Task run encountered an exception {}", chain(cause)) }
        }
        TaskCause::TimedOut(timeout) => TaskState::TimedOut {
            message: format!("Task run exceeded timeout of {:?} second(s)", timeout.as_secs_f64()),
        },
        TaskCause::Panicked(message) => {
            TaskState::Crashed { message: format!("Execution of the task panicked: {message}") }
        }
        TaskCause::NotReady { upstream } => TaskState::NotReady {
            message: format!("Upstream task run '{upstream}' did not reach a 'COMPLETED' state."),
        },
        TaskCause::Cancelled => TaskState::Crashed { message: ABORTED.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_makes_delays_longer_by_a_part_of_them() {
        let delay = Duration::from_secs(10);
        assert_eq!(lengthened(delay, 0.0, 1.0), delay);
        assert_eq!(lengthened(delay, 0.5, 0.0), delay);
        assert_eq!(lengthened(delay, 0.5, 1.0), Duration::from_secs(15));
        assert_eq!(lengthened(delay, f64::NAN, 1.0), delay, "nonsense changes nothing");
        assert_eq!(lengthened(Duration::MAX, 1.0, 1.0), Duration::MAX);
        let numbers: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(numbers.iter().all(|number| (0.0..=1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number > 0.5) && numbers.iter().any(|number| *number < 0.5));
    }
}
