//! Task runs as events: the runtime is the authority on the states of its task runs and tells the server by
//! one event for each state (contract §4.3).
//!
//! [`TaskRunRecord`] is the whole of a task run as its process knows it. [`TaskRunRecord::enter`] moves it into
//! a state and gives the event that says so. Its invariants are the server's: timestamps grow strictly, the
//! event's id is the state's id, and every event repeats the whole record, because fields that are absent
//! keep their old value and events may be the only ones to arrive.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::event::{Event, Resource};
use crate::flow_run::{TaskInputs, TaskRunPolicy};
use crate::id::{EventId, TaskRunId};
use crate::state::StateType;

/// The server refuses longer state messages.
const MESSAGE_LIMIT: usize = 100_000;

/// The server takes at most so many delays in a policy.
pub const DELAYS_LIMIT: usize = 50;

/// A state that a task run enters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// Made, not started.
    Pending,
    /// Will never start, because a task run that it waits for did not complete.
    NotReady {
        /// Which one.
        message: String,
    },
    /// At work for the first time.
    Running,
    /// Failed, will be tried again at a later time.
    AwaitingRetry {
        /// When.
        at: Timestamp,
    },
    /// At work again.
    Retrying,
    /// Ended well.
    Completed {
        /// Where its result is, if that is kept.
        result: Option<Value>,
    },
    /// Ended well without being run, because an equal run has been.
    Cached {
        /// Where the result of that run is.
        result: Value,
    },
    /// Ended with an error.
    Failed {
        /// The error.
        message: String,
    },
    /// Took too long.
    TimedOut {
        /// How long it was allowed to take.
        message: String,
    },
    /// Ended because the process did, or panicked.
    Crashed {
        /// Why.
        message: String,
    },
}

impl TaskState {
    /// The state's kind.
    pub const fn kind(&self) -> StateType {
        match self {
            Self::Pending | Self::NotReady { .. } => StateType::Pending,
            Self::Running | Self::Retrying => StateType::Running,
            Self::AwaitingRetry { .. } => StateType::Scheduled,
            Self::Completed { .. } | Self::Cached { .. } => StateType::Completed,
            Self::Failed { .. } | Self::TimedOut { .. } => StateType::Failed,
            Self::Crashed { .. } => StateType::Crashed,
        }
    }

    /// The state's name; the event's name ends in it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::NotReady { .. } => "NotReady",
            Self::Running => "Running",
            Self::AwaitingRetry { .. } => "AwaitingRetry",
            Self::Retrying => "Retrying",
            Self::Completed { .. } => "Completed",
            Self::Cached { .. } => "Cached",
            Self::Failed { .. } => "Failed",
            Self::TimedOut { .. } => "TimedOut",
            Self::Crashed { .. } => "Crashed",
        }
    }

    /// What a reader is told; empty if nothing.
    pub fn message(&self) -> &str {
        match self {
            Self::NotReady { message }
            | Self::Failed { message }
            | Self::TimedOut { message }
            | Self::Crashed { message } => message,
            Self::Pending
            | Self::Running
            | Self::AwaitingRetry { .. }
            | Self::Retrying
            | Self::Completed { .. }
            | Self::Cached { .. } => "",
        }
    }

    /// What the state says of where the result is; null if nothing.
    fn data(&self) -> Value {
        match self {
            Self::Completed { result } => result.clone().unwrap_or_default(),
            Self::Cached { result } => result.clone(),
            _ => Value::Null,
        }
    }

    fn details(&self) -> Value {
        match self {
            Self::AwaitingRetry { at } => json!({"scheduled_time": at}),
            Self::Failed { .. } => json!({"retriable": false}),
            _ => json!({}),
        }
    }
}

/// The state that a task run is in.
#[derive(Debug, Clone)]
struct Entered {
    event: EventId,
    kind: StateType,
    at: Timestamp,
    /// Without the data: as the next event repeats it.
    state: Value,
}

/// A task run, as the process that runs it knows it.
#[derive(Debug, Clone)]
pub struct TaskRunRecord {
    /// The task run's id, chosen here.
    pub id: TaskRunId,
    /// The task run's name; may change until it is running.
    pub name: String,
    /// The task; stable over runs.
    pub task_key: String,
    /// This call of the task. (flow run, `task_key`, `dynamic_key`) is unique on the server: a second task run
    /// with the same three is merged into the first and its own id is unknown.
    pub dynamic_key: String,
    /// Retries, as the page of the run shows them.
    pub policy: TaskRunPolicy,
    /// Tags.
    pub tags: Vec<String>,
    /// Where its inputs came from.
    pub inputs: TaskInputs,
    /// How often it has entered a running state.
    pub run_count: u32,
    /// How often its flow run has been running.
    pub flow_run_run_count: u32,
    expected_start_time: Option<Timestamp>,
    start_time: Option<Timestamp>,
    end_time: Option<Timestamp>,
    total_run_time: SignedDuration,
    current: Option<Entered>,
}

impl TaskRunRecord {
    /// A task run in no state yet, within the `flow_run_run_count`-th run of its flow run.
    pub fn new(
        name: impl Into<String>,
        task_key: impl Into<String>,
        dynamic_key: impl Into<String>,
        flow_run_run_count: u32,
    ) -> Self {
        Self {
            id: TaskRunId::generate(),
            name: name.into(),
            task_key: task_key.into(),
            dynamic_key: dynamic_key.into(),
            policy: TaskRunPolicy::default(),
            tags: Vec::new(),
            inputs: TaskInputs::new(),
            run_count: 0,
            flow_run_run_count,
            expected_start_time: None,
            start_time: None,
            end_time: None,
            total_run_time: SignedDuration::ZERO,
            current: None,
        }
    }

    /// Enters a state at `now` and gives the event that reports it. `related` are the flow run and what is
    /// around it; the tags are added here.
    pub fn enter(&mut self, state: &TaskState, now: Timestamp, related: &[Resource]) -> Event {
        let at = self.after_current(now);
        let kind = state.kind();
        let left = self.current.take();
        if let Some(left) = left.as_ref().filter(|left| left.kind == StateType::Running) {
            self.total_run_time = self.total_run_time.saturating_add(at.duration_since(left.at));
        }
        self.expected_start_time.get_or_insert(at);
        if kind == StateType::Running {
            self.run_count += 1;
            self.start_time.get_or_insert(at);
        }
        if kind.is_final() {
            self.end_time.get_or_insert(at);
        }
        let mut described = Map::new();
        described.insert("type".to_owned(), json!(kind));
        described.insert("name".to_owned(), json!(state.name()));
        described.insert("message".to_owned(), json!(shorten(state.message())));
        described.insert("state_details".to_owned(), state.details());
        let described = Value::Object(described);

        let mut event =
            Event::new(format!("prefect.task-run.{}", state.name()), at, self.resource(state, at));
        event.follows = left.as_ref().map(|left| left.event);
        event.related = self.tags.iter().map(|tag| Resource::of("tag", tag).role("tag")).collect();
        event.related.extend_from_slice(related);
        event.payload = self.payload(left.as_ref(), &described, state);
        self.current = Some(Entered { event: event.id, kind, at, state: described });
        event
    }

    /// Whether the record is in a final state.
    pub fn is_final(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.kind.is_final())
    }

    /// `now` in the server's resolution, but later than the current state.
    fn after_current(&self, now: Timestamp) -> Timestamp {
        let now = now.as_microsecond();
        let at = match &self.current {
            Some(current) => now.max(current.at.as_microsecond().saturating_add(1)),
            None => now,
        };
        Timestamp::from_microsecond(at).unwrap_or(Timestamp::MAX)
    }

    fn resource(&self, state: &TaskState, at: Timestamp) -> Resource {
        Resource::of("task-run", self.id)
            .named(&self.name)
            .with("prefect.run-count", self.run_count.to_string())
            .with("prefect.state-message", shorten(state.message()))
            .with("prefect.state-name", state.name())
            .with("prefect.state-timestamp", at.to_string())
            .with("prefect.state-type", state.kind().as_str())
            // Without this label the server does not record the task run at all.
            .with("prefect.orchestration", "client")
    }

    fn payload(&self, left: Option<&Entered>, described: &Value, state: &TaskState) -> Map<String, Value> {
        let mut validated = described.clone();
        validated["data"] = state.data();
        let mut task_run = json!({
            "name": self.name,
            "task_key": self.task_key,
            "dynamic_key": self.dynamic_key,
            "empirical_policy": self.policy,
            "tags": self.tags,
            "labels": {},
            "task_inputs": self.inputs,
            "run_count": self.run_count,
            "flow_run_run_count": if self.run_count == 0 { 0 } else { self.flow_run_run_count },
            "total_run_time": self.total_run_time.as_secs_f64(),
        });
        let times = [
            ("expected_start_time", self.expected_start_time),
            ("start_time", self.start_time),
            ("end_time", self.end_time),
        ];
        for (key, time) in times {
            if let Some(time) = time {
                task_run[key] = json!(time);
            }
        }
        let mut payload = Map::new();
        let from = left.map(|left| left.kind.as_str());
        payload.insert("intended".to_owned(), json!({"from": from, "to": state.kind()}));
        payload.insert("initial_state".to_owned(), left.map_or(Value::Null, |left| left.state.clone()));
        payload.insert("validated_state".to_owned(), validated);
        payload.insert("task_run".to_owned(), task_run);
        payload
    }
}

/// At most [`MESSAGE_LIMIT`] characters of a message.
fn shorten(message: &str) -> String {
    message.chars().take(MESSAGE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow_run::TaskInput;
    use proptest::prelude::*;

    fn at(microseconds: i64) -> Timestamp {
        Timestamp::from_microsecond(1_795_322_251_000_000 + microseconds).unwrap()
    }

    fn record() -> TaskRunRecord {
        TaskRunRecord::new("load-abc", "load-00000000", "abc", 2)
    }

    fn run(record: &TaskRunRecord, event: &Event) -> Value {
        assert_eq!(event.resource.id().unwrap(), format!("prefect.task-run.{}", record.id));
        event.payload["task_run"].clone()
    }

    #[test]
    fn an_event_is_as_the_contract_shows_it() {
        let mut record = record();
        record.id = TaskRunId(uuid::Uuid::nil());
        record.tags = vec!["db".to_owned()];
        record.inputs.insert("n".to_owned(), vec![TaskInput::TaskRun { id: TaskRunId(uuid::Uuid::max()) }]);
        let flow_run = Resource::of("flow-run", "1").role("flow-run").named("versed-caracal");
        record.enter(&TaskState::Pending, at(0), std::slice::from_ref(&flow_run));
        let mut event = record.enter(&TaskState::Running, at(941), &[flow_run]);
        event.id = EventId(uuid::Uuid::nil());
        event.follows = None;
        insta::assert_json_snapshot!(event);
    }

    #[test]
    fn counters_follow_the_states() {
        let mut record = record();
        let pending = record.enter(&TaskState::Pending, at(0), &[]);
        assert_eq!(run(&record, &pending)["flow_run_run_count"], 0);
        assert_eq!(pending.payload["initial_state"], Value::Null);
        record.enter(&TaskState::Running, at(10), &[]);
        let awaiting = record.enter(&TaskState::AwaitingRetry { at: at(1_000_000) }, at(30), &[]);
        assert_eq!(
            awaiting.payload["validated_state"]["state_details"]["scheduled_time"],
            json!(at(1_000_000))
        );
        record.enter(&TaskState::Retrying, at(1_000_000), &[]);
        let end = record.enter(&TaskState::Completed { result: None }, at(1_000_040), &[]);
        let run = run(&record, &end);
        assert_eq!((&run["run_count"], &run["flow_run_run_count"]), (&json!(2), &json!(2)));
        assert_eq!(run["start_time"], json!(at(10)));
        assert_eq!(run["end_time"], json!(at(1_000_040)));
        assert!((run["total_run_time"].as_f64().unwrap() - 0.000_06).abs() < 1e-12);
        assert!(record.is_final());
    }

    #[test]
    fn a_task_run_that_never_ran_has_no_start() {
        let mut record = record();
        record.enter(&TaskState::Pending, at(0), &[]);
        let event = record.enter(&TaskState::NotReady { message: "no".to_owned() }, at(1), &[]);
        assert_eq!(event.event, "prefect.task-run.NotReady");
        assert_eq!(event.payload["validated_state"]["type"], "PENDING");
        assert!(run(&record, &event).get("start_time").is_none());
        assert!(!record.is_final());
    }

    #[test]
    fn messages_are_cut_at_the_servers_limit() {
        let mut record = record();
        let event = record.enter(&TaskState::Crashed { message: "é".repeat(100_001) }, at(0), &[]);
        assert_eq!(event.resource.get("prefect.state-message").unwrap().chars().count(), MESSAGE_LIMIT);
    }

    proptest! {
        /// Whatever the clock does, also backwards: timestamps grow strictly, and each event follows the last.
        #[test]
        fn states_are_in_order(steps in proptest::collection::vec((0..7u8, -1000..1000i64), 1..30)) {
            let mut record = record();
            let mut last: Option<Event> = None;
            let mut now = 0;
            for (state, step) in steps {
                now += step;
                let message = String::new();
                let state = match state {
                    0 => TaskState::Pending,
                    1 => TaskState::Running,
                    2 => TaskState::Retrying,
                    3 => TaskState::AwaitingRetry { at: at(0) },
                    4 => TaskState::Completed { result: None },
                    5 => TaskState::Failed { message },
                    _ => TaskState::Crashed { message },
                };
                let event = record.enter(&state, at(now), &[]);
                if let Some(last) = last {
                    prop_assert!(event.occurred > last.occurred);
                    prop_assert_eq!(event.follows, Some(last.id));
                    prop_assert_ne!(event.id, last.id);
                }
                last = Some(event);
            }
        }
    }
}
