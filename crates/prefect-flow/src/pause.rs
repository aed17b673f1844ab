//! Pauses: a flow run waits, in its process or without one, until somebody resumes it (contract §5.6, §3.8).

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prefect_api::state::{Answer, NewState, RunInputKeyset, StateType};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::{Cancelled, chain};
use crate::parameters;

/// How long a pause may last unless it says otherwise.
const TIMEOUT: Duration = Duration::from_hours(1);

/// A pause that did not end with the run going on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PauseError {
    /// The server does not allow it.
    #[error("{verb} the flow run: {reason}")]
    Refused {
        /// `pause` or `suspend`.
        verb: &'static str,
        /// The server's words.
        reason: String,
    },
    /// The server could not be told.
    #[error("{verb} the flow run")]
    Report {
        /// `pause` or `suspend`.
        verb: &'static str,
        /// Why.
        source: prefect_client::Error,
    },
    /// Nobody resumed the run in time.
    #[error("Flow run was paused and never resumed.")]
    TimedOut,
    /// Somebody ended the run.
    #[error("the paused flow run was not resumed, but became {state}")]
    Ended {
        /// The state's name.
        state: String,
    },
    /// The run was resumed without the input that it waits for, or with one of another form.
    #[error("read the input of the resumed flow run: at `{path}`: {problem}")]
    Input {
        /// Where, as a JSON path.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// The run was cancelled while it was paused.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The process waits.
    Pause,
    /// The process ends; another one runs the flow again.
    Suspend,
}

impl Kind {
    const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Suspend => "suspend",
        }
    }

    const fn state(self) -> &'static str {
        match self {
            Self::Pause => "Paused",
            Self::Suspend => "Suspended",
        }
    }
}

/// A pause that has not begun; made by [`Context::pause`] or [`Context::suspend`], begun by awaiting it. Its result is
/// what was filled in by whoever resumed the run, if it waits for input.
#[must_use = "a pause does nothing until it is awaited"]
#[derive(Debug)]
pub struct Pause<I = ()> {
    ctx: Context,
    kind: Kind,
    timeout: Duration,
    key: Option<String>,
    schema: Option<Value>,
    description: Option<String>,
    input: PhantomData<fn() -> I>,
}

impl Pause {
    pub(crate) const fn new(ctx: Context, kind: Kind) -> Self {
        Self { ctx, kind, timeout: TIMEOUT, key: None, schema: None, description: None, input: PhantomData }
    }

    /// Waits for an `I`, a struct with named fields, that is filled in when the run is resumed. `description` is shown
    /// above the form.
    pub fn wait_for_input<I>(self, description: impl Into<String>) -> Pause<I>
    where
        I: DeserializeOwned + JsonSchema,
    {
        let Self { ctx, kind, timeout, key, .. } = self;
        let (schema, description) = (Some(parameters::schema::<I>()), Some(description.into()));
        Pause { ctx, kind, timeout, key, schema, description, input: PhantomData }
    }
}

impl<I: DeserializeOwned> Pause<I> {
    /// How long it may last (an hour). A run that is not resumed by then fails.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Its name among the pauses of the run; else its number in the order of the calls. A pause that has been resumed
    /// does not pause again when the flow is run again.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    async fn run(self) -> Result<I, PauseError> {
        let line = match self.kind {
            Kind::Pause => "Pausing flow, execution will continue when this flow run is resumed.",
            Kind::Suspend => {
                "Suspending flow run, execution will be rescheduled when this flow run is resumed."
            }
        };
        self.ctx.info(line);
        let key = self.key.clone().unwrap_or_else(|| (self.ctx.run.count_call("pause") + 1).to_string());
        let keyset = self.schema.is_some().then(|| RunInputKeyset::of_pause(self.kind.state(), &key));
        let paused = self.enter(key, keyset.clone()).await?;
        if paused {
            if let Some(keyset) = &keyset {
                self.show_form(keyset).await?;
            }
            match self.kind {
                Kind::Pause => self.until_resumed().await?,
                Kind::Suspend => {
                    self.ctx.run.suspended.cancel();
                    // The engine ends the run here.
                    return std::future::pending().await;
                }
            }
        }
        self.input(keyset.as_ref()).await
    }

    /// Proposes the state. `false` if this pause was resumed before.
    async fn enter(&self, key: String, keyset: Option<RunInputKeyset>) -> Result<bool, PauseError> {
        let verb = self.kind.verb();
        let mut state = NewState::new(StateType::Paused).named(self.kind.state());
        let timeout = SignedDuration::try_from(self.timeout).unwrap_or(SignedDuration::MAX);
        state.state_details.pause_timeout =
            Some(Timestamp::now().saturating_add(timeout).unwrap_or(Timestamp::MAX));
        state.state_details.pause_reschedule = self.kind == Kind::Suspend;
        state.state_details.pause_key = Some(key);
        state.state_details.run_input_keyset = keyset;
        let run = &self.ctx.run;
        let (client, patience) = (run.engine.client(), run.engine.patience());
        loop {
            let propose = || client.set_flow_run_state(run.id, &state, false);
            let answer = patience.insist("pause the flow run", propose).await;
            match answer.map_err(|source| PauseError::Report { verb, source })? {
                Answer::Accept(_) => break,
                Answer::Reject { state: Some(now), .. } if now.entered_by(&state) => break,
                Answer::Reject { state: Some(now), .. } if now.kind == StateType::Running => {
                    return Ok(false);
                }
                Answer::Reject { state: Some(now), .. } if now.kind == StateType::Cancelling => {
                    self.ctx.cancelled().await;
                    return Err(Cancelled.into());
                }
                Answer::Wait { delay_seconds, .. } => {
                    let wait = tokio::time::sleep(Duration::from_secs_f64(delay_seconds));
                    self.ctx.unless_cancelled(wait).await?;
                }
                Answer::Reject { reason, .. } | Answer::Abort { reason, .. } => {
                    return Err(PauseError::Refused { verb, reason });
                }
            }
        }
        // The server gives the deployment's slot to others while the run is paused.
        run.gave_slot_back.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(true)
    }

    /// Keeps with the run what the UI asks for when it is resumed.
    async fn show_form(&self, keyset: &RunInputKeyset) -> Result<(), PauseError> {
        let verb = self.kind.verb();
        let run = &self.ctx.run;
        let (client, patience) = (run.engine.client(), run.engine.patience());
        let description = self.description.clone().map(Value::String);
        let parts = [(&keyset.schema, &self.schema), (&keyset.description, &description)];
        for (key, value) in parts {
            let Some(value) = value else { continue };
            let create = || client.create_flow_run_input(run.id, key, value);
            let created = patience.insist("show the form of the pause", create).await;
            match created {
                Ok(()) => {}
                // It is there already: an earlier call whose answer was lost, or an earlier pause of this name.
                Err(error) if error.status() == Some(409) => {}
                Err(source) => return Err(PauseError::Report { verb, source }),
            }
        }
        Ok(())
    }

    async fn until_resumed(&self) -> Result<(), PauseError> {
        let run = &self.ctx.run;
        let end = Instant::now() + self.timeout;
        let poll = run.engine.pause_poll();
        let mut wait = poll.min(self.timeout / 2);
        loop {
            self.ctx.unless_cancelled(tokio::time::sleep(wait)).await?;
            wait = poll;
            match run.engine.client().read_flow_run(run.id).await {
                Ok(now) => match now.state_type.unwrap_or(StateType::Unknown) {
                    StateType::Running => {
                        self.ctx.info("Resuming flow run execution!");
                        return Ok(());
                    }
                    StateType::Paused => {}
                    StateType::Cancelling => {
                        self.ctx.cancelled().await;
                        return Err(Cancelled.into());
                    }
                    kind => {
                        let state = now.state_name.unwrap_or_else(|| kind.default_name().to_owned());
                        return Err(PauseError::Ended { state });
                    }
                },
                Err(error) if error.is_transient() => {
                    tracing::warn!(error = chain(&error), "nobody can tell whether the run was resumed");
                }
                Err(source) => return Err(PauseError::Report { verb: self.kind.verb(), source }),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PauseError::TimedOut);
            }
            wait = wait.min(left);
        }
    }

    /// What was filled in.
    async fn input(&self, keyset: Option<&RunInputKeyset>) -> Result<I, PauseError> {
        let value = match keyset {
            None => Value::Null,
            Some(keyset) => {
                let run = &self.ctx.run;
                let (client, patience) = (run.engine.client(), run.engine.patience());
                let read = || client.read_flow_run_input(run.id, &keyset.response);
                let read = patience.insist("read the input of the pause", read).await;
                read.map_err(|source| PauseError::Report { verb: self.kind.verb(), source })?
                    .unwrap_or_else(|| Value::Object(serde_json::Map::new()))
            }
        };
        serde_path_to_error::deserialize(value).map_err(|error| PauseError::Input {
            path: error.path().to_string(),
            problem: error.inner().to_string(),
        })
    }
}

impl<I: DeserializeOwned + 'static> IntoFuture for Pause<I> {
    type Output = Result<I, PauseError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
