//! A flow: an async function with typed parameters, and what the server is told about it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;
use crate::error::BoxError;
use crate::hook::{Due, Entered, Hook, Occasion};
use crate::parameters::{self, ParameterError, Parameters};
use crate::results::Codec;

type Body<P, T> = dyn Fn(Context, P) -> BoxFuture<'static, Result<T, BoxError>> + Send + Sync;

/// A flow with parameters `P` and result `T`. Cheap to clone.
pub struct Flow<P, T = ()> {
    info: Info,
    body: Arc<Body<P, T>>,
    hooks: Vec<Hook<(Context, P)>>,
    /// How its result is kept, if it is.
    codec: Option<Codec<T>>,
}

/// What the engine and the server need to know about a flow.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) run_name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) retries: u32,
    pub(crate) retry_delay: Duration,
    pub(crate) timeout: Option<Duration>,
}

impl<P, T> Clone for Flow<P, T> {
    fn clone(&self) -> Self {
        Self {
            info: self.info.clone(),
            body: Arc::clone(&self.body),
            hooks: self.hooks.clone(),
            codec: self.codec,
        }
    }
}

impl<P, T> std::fmt::Debug for Flow<P, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("info", &self.info).finish_non_exhaustive()
    }
}

impl<P, T> Flow<P, T>
where
    P: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
    T: Send + 'static,
{
    /// A flow of this name. The name is what deployments refer to. `P` is a struct with named fields, an empty
    /// one for a flow without parameters.
    pub fn new<F, R, E>(name: impl Into<String>, body: F) -> Self
    where
        F: Fn(Context, P) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let info = Info {
            name: name.into(),
            description: None,
            run_name: None,
            version: None,
            retries: 0,
            retry_delay: Duration::ZERO,
            timeout: None,
        };
        let body = move |ctx, parameters| -> BoxFuture<'static, Result<T, BoxError>> {
            let run = body(ctx, parameters);
            Box::pin(async move { run.await.map_err(Into::into) })
        };
        Self { info, body: Arc::new(body), hooks: Vec::new(), codec: None }
    }

    /// What the flow does, in a sentence.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.info.description = Some(description.into());
        self
    }

    /// Names of its runs: a template such as `archive-{job_id}` or `archive-{job.id}` over the parameters.
    #[must_use]
    pub fn run_name(mut self, template: impl Into<String>) -> Self {
        self.info.run_name = Some(template.into());
        self
    }

    /// The version of its code; the program's unless set.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.info.version = Some(version.into());
        self
    }

    /// Run it again, in the same process, when it fails: so many times, after a delay (in whole seconds).
    #[must_use]
    pub const fn retries(mut self, retries: u32, delay: Duration) -> Self {
        self.info.retries = retries;
        self.info.retry_delay = delay;
        self
    }

    /// How long one attempt may take.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.info.timeout = Some(timeout);
        self
    }

    /// Stores the result of each run, as JSON, so that it outlives the run: the state of the run says where it is. Other
    /// flows read it by [`Context::result_of`]; as a subflow that has completed it is not run again when its parent
    /// is. A result that cannot be stored is told in the log, and fails nothing.
    #[must_use]
    pub fn persist_result(mut self) -> Self
    where
        T: Serialize + DeserializeOwned,
    {
        self.codec = Some(Codec::json());
        self
    }

    /// Calls `hook` whenever a run is at work: in each attempt, before the flow's own code. `name` is what the
    /// log calls it.
    #[must_use]
    pub fn on_running<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, P, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Running, name, hook)
    }

    /// Calls `hook` when a run has completed.
    #[must_use]
    pub fn on_completion<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, P, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Completion, name, hook)
    }

    /// Calls `hook` when a run has failed and is not tried again.
    #[must_use]
    pub fn on_failure<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, P, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Failure, name, hook)
    }

    /// Calls `hook` when a run is cancelled and its code has ended: in this process, or by the command
    /// `flow-run hook cancelled` where the process was killed. It may be called a second time if a process dies in
    /// between. All such hooks of a run share a minute (`PREFECT_FLOW_RUN_HOOK_SECONDS`).
    #[must_use]
    pub fn on_cancellation<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, P, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Cancellation, name, hook)
    }

    /// Calls `hook` when a run has crashed: in this process where it can still do so, or by the command
    /// `flow-run hook crashed` where it died. It may be called a second time if a process dies in between. All such
    /// hooks of a run share a minute (`PREFECT_FLOW_RUN_HOOK_SECONDS`), and the grace for signals
    /// (`PREFECT_FLOW_RUN_TERMINATE_GRACE_SECONDS`) if the process is asked to end.
    #[must_use]
    pub fn on_crashed<F, R, E>(self, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, P, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.on(Occasion::Crash, name, hook)
    }

    fn on<F, R, E>(mut self, on: Occasion, name: impl Into<String>, hook: F) -> Self
    where
        F: Fn(Context, P, Entered) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let call = move |(ctx, parameters), entered| hook(ctx, parameters, entered);
        self.hooks.push(Hook::new(on, name, call));
        self
    }
}

/// A flow's code at work; its result is a boxed `T`.
pub(crate) type RunningBody = BoxFuture<'static, Result<Box<dyn Any + Send>, BoxError>>;

/// A flow whose types are forgotten.
pub(crate) trait AnyFlow: Send + Sync {
    fn info(&self) -> &Info;

    /// The JSON Schema of the parameters.
    fn schema(&self) -> Value;

    /// The parameters with all defaults filled in.
    fn complete(&self, given: &Parameters) -> Result<Parameters, ParameterError>;

    /// Runs the body.
    fn call(&self, ctx: Context, parameters: &Parameters) -> Result<RunningBody, ParameterError>;

    /// Whether there are hooks for this.
    fn has_hooks(&self, on: Occasion) -> bool;

    /// The hooks for this, in the order of their declaration, with their arguments.
    fn hooks(
        &self,
        on: Occasion,
        ctx: &Context,
        parameters: &Parameters,
        entered: &Entered,
    ) -> Result<Vec<Due>, ParameterError>;

    /// The result of a run whose result was not kept, if that is not needed to know it.
    fn known_result(&self) -> Option<Box<dyn Any + Send>>;

    /// A result as it is kept; `None` if it is not to be.
    fn encode_result(&self, result: &(dyn Any + Send)) -> Option<Result<String, serde_json::Error>>;

    /// A result that was kept; `None` if it is not to be.
    fn decode_result(&self, text: &str) -> Option<Result<Box<dyn Any + Send>, serde_json::Error>>;
}

impl<P, T> AnyFlow for Flow<P, T>
where
    P: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
    T: Send + 'static,
{
    fn info(&self) -> &Info {
        &self.info
    }

    fn schema(&self) -> Value {
        let mut schema = parameters::schema::<P>();
        if let (Some(description), Some(root)) = (&self.info.description, schema.as_object_mut()) {
            root.insert("description".to_owned(), Value::String(description.clone()));
        }
        schema
    }

    fn complete(&self, given: &Parameters) -> Result<Parameters, ParameterError> {
        let parsed: P = parameters::parse(given)?;
        match serde_json::to_value(parsed) {
            Ok(Value::Object(complete)) => Ok(complete),
            // Unit parameters, for flows without any.
            Ok(_) => Ok(given.clone()),
            Err(error) => Err(ParameterError::Invalid { path: ".".to_owned(), problem: error.to_string() }),
        }
    }

    fn call(&self, ctx: Context, parameters: &Parameters) -> Result<RunningBody, ParameterError> {
        let parameters: P = parameters::parse(parameters)?;
        let body = Arc::clone(&self.body);
        Ok(Box::pin(async move {
            let result = body(ctx, parameters).await?;
            Ok(Box::new(result) as Box<dyn Any + Send>)
        }))
    }

    fn has_hooks(&self, on: Occasion) -> bool {
        self.hooks.iter().any(|hook| hook.is_for(on))
    }

    fn hooks(
        &self,
        on: Occasion,
        ctx: &Context,
        parameters: &Parameters,
        entered: &Entered,
    ) -> Result<Vec<Due>, ParameterError> {
        let hooks = self.hooks.iter().filter(|hook| hook.is_for(on));
        hooks.map(|hook| Ok(hook.due((ctx.clone(), parameters::parse(parameters)?), entered))).collect()
    }

    fn known_result(&self) -> Option<Box<dyn Any + Send>> {
        (std::any::TypeId::of::<T>() == std::any::TypeId::of::<()>())
            .then(|| Box::new(()) as Box<dyn Any + Send>)
    }

    fn encode_result(&self, result: &(dyn Any + Send)) -> Option<Result<String, serde_json::Error>> {
        Some((self.codec?.encode)(result.downcast_ref::<T>()?))
    }

    fn decode_result(&self, text: &str) -> Option<Result<Box<dyn Any + Send>, serde_json::Error>> {
        let value = (self.codec?.decode)(text);
        Some(value.map(|value| Box::new(value) as Box<dyn Any + Send>))
    }
}
