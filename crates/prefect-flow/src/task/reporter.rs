//! Reports the states of one task run, and its last one even when its future is dropped.

use jiff::Timestamp;
use prefect_api::id::TaskRunId;
use prefect_api::state::StateType;
use prefect_api::task_event::{TaskRunRecord, TaskState};

use super::handle::{Ended, Outcome};
use crate::context::{Context, TaskScope};
use crate::engine::ABORTED;
use crate::report::Level;

/// The states of one task run on their way to the server.
#[derive(Debug)]
pub(super) struct Reporter {
    ctx: Context,
    record: TaskRunRecord,
    ended: Ended,
    /// It has a last state, though perhaps not a final one (`NotReady`).
    closed: bool,
    /// The last state, as long as nobody has been told.
    untold: Option<TaskState>,
    opened: bool,
}

/// What the code of a task run knows about it.
fn scope(record: &TaskRunRecord) -> TaskScope {
    TaskScope { id: record.id, name: record.name.clone(), tags: record.tags.clone() }
}

impl Reporter {
    pub(super) fn new(ctx: &Context, record: TaskRunRecord, ended: Ended) -> Self {
        let ctx = ctx.of_task(scope(&record));
        Self { ctx, record, ended, closed: false, untold: None, opened: false }
    }

    pub(super) const fn id(&self) -> TaskRunId {
        self.record.id
    }

    pub(super) fn name(&self) -> &str {
        &self.record.name
    }

    /// The task, as it is told apart from others.
    pub(super) fn task(&self) -> &str {
        &self.record.task_key
    }

    /// The context of the task run.
    pub(super) const fn context(&self) -> &Context {
        &self.ctx
    }

    /// Takes the name that was chosen for the run; shown from the next state on.
    pub(super) fn rename(&mut self, name: String) {
        self.record.name = name;
        self.ctx = self.ctx.of_task(scope(&self.record));
    }

    /// Enters a state and reports it.
    pub(super) async fn enter(&mut self, state: &TaskState) {
        let (run, now) = (&self.ctx.run, Timestamp::now());
        // Work that is to stop does not wait: somebody waits for its end.
        run.cancellation.run_until_cancelled(run.engine.pace().admit(self.record.id, now)).await;
        self.opened = true;
        let event = self.record.enter(state, now, &run.related);
        run.engine.events().send(event).await;
    }

    /// Enters the last state and reports it. Those who wait for it are told by [`Self::tell_end`], or when this is
    /// dropped.
    pub(super) async fn close(&mut self, state: &TaskState) {
        self.enter(state).await;
        // Not before: dropped while the event waits for room in the queue, the task has not told its end.
        self.closed = true;
        self.untold = Some(state.clone());
    }

    /// Tells those who wait for the end that it has come.
    pub(super) fn tell_end(&mut self) {
        let Some(state) = self.untold.take() else { return };
        let completed = state.kind() == StateType::Completed;
        self.ended.send_replace(if completed { Outcome::Completed } else { Outcome::Other });
        let level = if completed { Level::Info } else { Level::Error };
        let state = py_state(state.kind(), state.name(), state.message());
        self.ctx.log(level, format!("Finished in state {state}"));
    }
}

impl Drop for Reporter {
    /// The future of the task was dropped: what it did is unknown, hence it crashed.
    fn drop(&mut self) {
        if self.opened && !self.closed {
            self.ctx.log(Level::Error, format!("Crash detected! {ABORTED}"));
            let state = TaskState::Crashed { message: ABORTED.to_owned() };
            let event = self.record.enter(&state, Timestamp::now(), &self.ctx.run.related);
            self.ctx.run.engine.send_detached(event);
            self.untold = Some(state);
        }
        self.tell_end();
    }
}

/// A state as Prefect's log lines show it: `Completed()`, `TimedOut('too slow', type=FAILED)`.
pub(crate) fn py_state(kind: StateType, name: &str, message: &str) -> String {
    let mut parts = Vec::new();
    if !message.is_empty() {
        let quote = if message.contains('\'') && !message.contains('"') { '"' } else { '\'' };
        let mut quoted = String::from(quote);
        for c in message.chars() {
            match c {
                '\n' => quoted.push_str("\\n"),
                '\\' => quoted.push_str("\\\\"),
                c if c == quote => quoted.extend(['\\', c]),
                c => quoted.push(c),
            }
        }
        quoted.push(quote);
        parts.push(quoted);
    }
    if name != kind.default_name() {
        parts.push(format!("type={}", kind.as_str()));
    }
    format!("{name}({})", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_in_prefects_logs() {
        assert_eq!(py_state(StateType::Completed, "Completed", ""), "Completed()");
        assert_eq!(py_state(StateType::Failed, "Failed", "a: b"), "Failed('a: b')");
        assert_eq!(py_state(StateType::Failed, "Failed", "it's"), "Failed(\"it's\")");
        assert_eq!(py_state(StateType::Failed, "TimedOut", "slow"), "TimedOut('slow', type=FAILED)");
        assert_eq!(py_state(StateType::Completed, "Cached", ""), "Cached(type=COMPLETED)");
    }
}
