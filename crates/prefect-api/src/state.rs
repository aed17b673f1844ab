//! States of flow runs and task runs, and the server's answer to a proposed one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::id::{FlowRunId, LeaseId, StateId, TaskRunId};

/// The kind of a state; its name refines it (`Retrying` is a `RUNNING`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StateType {
    /// Waits for its time.
    Scheduled,
    /// Claimed, about to start.
    Pending,
    /// At work.
    Running,
    /// Ended well.
    Completed,
    /// Ended with an error of the flow's.
    Failed,
    /// Ended on request.
    Cancelled,
    /// Ended because its infrastructure broke.
    Crashed,
    /// Waits for somebody to resume it.
    Paused,
    /// Asked to end.
    Cancelling,
    /// A kind that this program does not know.
    #[serde(other)]
    Unknown,
}

impl StateType {
    /// Whether a run in this state is over.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Crashed)
    }

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "SCHEDULED",
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Crashed => "CRASHED",
            Self::Paused => "PAUSED",
            Self::Cancelling => "CANCELLING",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The name that a state of this type has unless it says otherwise.
    pub const fn default_name(self) -> &'static str {
        match self {
            Self::Scheduled => "Scheduled",
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Crashed => "Crashed",
            Self::Paused => "Paused",
            Self::Cancelling => "Cancelling",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a state carries beside its type; unset fields are left out on the wire.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateDetails {
    /// The flow run of the state; the server fills it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_run_id: Option<FlowRunId>,
    /// The task run of the state, or the parent task run of a subflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_run_id: Option<TaskRunId>,
    /// The subflow run that a parent task run stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_flow_run_id: Option<FlowRunId>,
    /// When a scheduled run is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_time: Option<Timestamp>,
    /// The key of a cached result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
    /// The result exists but was not stored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrackable_result: bool,
    /// When a pause ends in failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_timeout: Option<Timestamp>,
    /// The pause gives its infrastructure back (a suspension).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pause_reschedule: bool,
    /// Which pause of the run this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_key: Option<String>,
    /// Where the input that a pause waits for is kept with the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_input_keyset: Option<RunInputKeyset>,
    /// Whether a failure may be retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable: Option<bool>,
    /// Names one proposal, so that a re-sent one is recognised (contract §5.4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transition_id: Option<Uuid>,
    /// The lease on the deployment's concurrency slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_concurrency_lease_id: Option<LeaseId>,
}

/// The keys under which a pause keeps its form and its answer with the run (contract §3.8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInputKeyset {
    /// Key of the words above the form.
    pub description: String,
    /// Key of what was filled in.
    pub response: String,
    /// Key of the form's JSON Schema.
    pub schema: String,
}

impl RunInputKeyset {
    /// The keys of a pause: `state` is the state's name, `key` the pause's.
    pub fn of_pause(state: &str, key: &str) -> Self {
        let base = format!("{}-{key}", state.to_lowercase());
        Self {
            description: format!("{base}-description"),
            response: format!("{base}-response"),
            schema: format!("{base}-schema"),
        }
    }
}

/// A state as the server reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The state's id.
    pub id: StateId,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: StateType,
    /// Its name; equal to the kind's unless it refines it.
    #[serde(default)]
    pub name: Option<String>,
    /// When it was entered.
    pub timestamp: Timestamp,
    /// What a reader is told about it.
    #[serde(default)]
    pub message: Option<String>,
    /// Reference to the result, when results are persisted.
    #[serde(default)]
    pub data: Option<Value>,
    /// The rest.
    #[serde(default)]
    pub state_details: StateDetails,
}

impl State {
    /// The state's name, or its kind's.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.default_name())
    }

    /// Whether the run entered this state by `proposal`, even if the answer to it never arrived: the server
    /// answers REJECT with the state to a proposal that it has accepted before (contract §5.4).
    pub fn entered_by(&self, proposal: &NewState) -> bool {
        let proposed = proposal.state_details.transition_id;
        proposed.is_some() && proposed == self.state_details.transition_id
    }
}

/// A state as a client proposes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewState {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: StateType,
    /// Its name.
    pub name: String,
    /// What a reader is told about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Reference to the result, when results are persisted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// The rest; [`NewState::new`] puts a fresh transition id in it.
    pub state_details: StateDetails,
}

impl NewState {
    /// The state that a run is made in: no transition leads to it.
    pub fn first(kind: StateType) -> Self {
        let mut state = Self::new(kind);
        state.state_details.transition_id = None;
        state
    }

    /// A state of `kind` under the kind's own name, with a fresh transition id.
    pub fn new(kind: StateType) -> Self {
        Self {
            kind,
            name: kind.default_name().to_owned(),
            message: None,
            data: None,
            state_details: StateDetails { transition_id: Some(Uuid::new_v4()), ..StateDetails::default() },
        }
    }

    /// The same under another name, for example `Submitting`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same with a message.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// The same, due at `time`.
    #[must_use]
    pub fn scheduled_at(mut self, time: Timestamp) -> Self {
        self.state_details.scheduled_time = Some(time);
        self
    }
}

/// The server's answer to a proposed state. The HTTP status says nothing about it (contract §5.1).
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The proposed state is now the run's.
    Accept(State),
    /// It is not; this one is, and may be new (`AwaitingRetry`, `AwaitingConcurrencySlot`, `Cancelled` …).
    Reject {
        /// The run's state.
        state: Option<State>,
        /// Why.
        reason: String,
    },
    /// The client must not work on this run, nor propose more states.
    Abort {
        /// The run's state.
        state: Option<State>,
        /// Why.
        reason: String,
    },
    /// The client must propose again later, under a new transition id.
    Wait {
        /// How long to wait, in seconds.
        delay_seconds: f64,
        /// Why.
        reason: String,
    },
}

/// [`Answer`] as it stands on the wire.
#[derive(Debug, Deserialize)]
pub struct OrchestrationResult {
    status: Status,
    #[serde(default)]
    state: Option<State>,
    #[serde(default)]
    details: Details,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Accept,
    Reject,
    Abort,
    Wait,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    reason: Option<String>,
    delay_seconds: Option<f64>,
}

/// An [`OrchestrationResult`] that contradicts itself.
#[derive(Debug, thiserror::Error)]
#[error("read the server's answer to a state: it accepted without naming the state")]
pub struct StatelessAccept;

impl TryFrom<OrchestrationResult> for Answer {
    type Error = StatelessAccept;

    fn try_from(result: OrchestrationResult) -> Result<Self, StatelessAccept> {
        let reason = result.details.reason.unwrap_or_default();
        Ok(match result.status {
            Status::Accept => Self::Accept(result.state.ok_or(StatelessAccept)?),
            Status::Reject => Self::Reject { state: result.state, reason },
            Status::Abort => Self::Abort { state: result.state, reason },
            Status::Wait => {
                // A hostile or broken delay must not become a busy loop or a sleep without end.
                let delay = result.details.delay_seconds.unwrap_or(1.0);
                let delay = if delay.is_finite() { delay.clamp(0.1, 86_400.0) } else { 1.0 };
                Self::Wait { delay_seconds: delay, reason }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(value: Value) -> Answer {
        serde_json::from_value::<OrchestrationResult>(value).unwrap().try_into().unwrap()
    }

    #[test]
    fn a_proposal_is_the_minimal_body_of_the_contract() {
        let mut state = NewState::new(StateType::Pending).named("Submitting");
        state.state_details.transition_id = Some(Uuid::nil());
        insta::assert_json_snapshot!(state, @r#"
        {
          "type": "PENDING",
          "name": "Submitting",
          "state_details": {
            "transition_id": "00000000-0000-0000-0000-000000000000"
          }
        }
        "#);
    }

    #[test]
    fn a_reject_may_carry_a_new_state() {
        let given = json!({"status": "REJECT", "state": {
            "id": Uuid::nil(), "type": "SCHEDULED", "name": "AwaitingConcurrencySlot",
            "timestamp": "2026-11-22T05:10:06.546046Z", "state_details": {"added_later": 1}},
            "details": {"type": "reject_details", "reason": "Deployment concurrency limit reached."}});
        let Answer::Reject { state: Some(state), reason } = answer(given) else { panic!("not a reject") };
        assert_eq!(state.name(), "AwaitingConcurrencySlot");
        assert_eq!(reason, "Deployment concurrency limit reached.");
    }

    #[test]
    fn a_state_is_known_by_the_proposal_that_made_it() {
        let ours = NewState::new(StateType::Pending);
        let state = |transition: Value| -> State {
            serde_json::from_value(
                json!({"id": Uuid::nil(), "type": "PENDING", "timestamp": "2026-11-22T05:10:06Z",
                "state_details": {"transition_id": transition}}),
            )
            .unwrap()
        };
        assert!(state(json!(ours.state_details.transition_id)).entered_by(&ours));
        assert!(!state(json!(Uuid::nil())).entered_by(&ours));
        let mut nameless = ours;
        nameless.state_details.transition_id = None;
        assert!(!state(Value::Null).entered_by(&nameless), "two states without ids are not the same");
    }

    #[test]
    fn a_wait_is_bounded_whatever_the_server_says() {
        for (given, expected) in
            [(json!(3), 3.0), (json!(-4), 0.1), (json!(1e18), 86_400.0), (json!(null), 1.0)]
        {
            let given = json!({"status": "WAIT", "state": null, "details": {"delay_seconds": given}});
            let Answer::Wait { delay_seconds, .. } = answer(given) else { panic!("not a wait") };
            assert!((delay_seconds - expected).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn an_accept_without_a_state_is_refused() {
        let result: OrchestrationResult = serde_json::from_value(json!({"status": "ACCEPT"})).unwrap();
        assert!(Answer::try_from(result).is_err());
    }
}
