//! The differences that we stand by. Each is a row of `docs/compatibility.md`, where its reason is.

use serde_json::Value;

use crate::compare::{Difference, Explanation};

/// The last name of the place.
fn field(found: &Difference) -> &str {
    found.path.rsplit('.').next().unwrap_or_default()
}

/// A line of a list that only one of the two has.
fn line(found: &Difference) -> &str {
    found.reference.as_str().or(found.ours.as_str()).unwrap_or_default()
}

/// A log line that only one of the two has.
fn log(found: &Difference) -> Option<&str> {
    (field(found) == "logs").then(|| line(found).split_once(": ").map(|(_, message)| message)).flatten()
}

fn only_python(found: &Difference) -> bool {
    found.ours.is_null()
}

fn only_ours(found: &Difference) -> bool {
    found.reference.is_null()
}

fn is_debug(found: &Difference) -> bool {
    field(found) == "logs" && line(found).starts_with("DEBUG ")
}

/// All of them.
pub const TABLE: &[Explanation] = &[
    Explanation { difference: "the engine's own lines at level DEBUG are others", covers: is_debug },
    Explanation {
        difference: "the version of a flow is its program's unless it has one",
        covers: |found| {
            let hash = |value: &Value| value.as_str().is_some_and(|it| it == "<id>");
            ["flow_version", "task_version"].contains(&field(found)) && hash(&found.reference)
        },
    },
    Explanation {
        difference: "`task_inputs` hold what comes from other task runs, not the names of all parameters",
        covers: |found| {
            found.path.contains(".task_inputs.")
                && found.reference == Value::Array(Vec::new())
                && only_python(found)
        },
    },
    Explanation {
        difference: "heartbeats name the deployment",
        covers: |found| line(found).starts_with("prefect.flow-run.heartbeat of "),
    },
    Explanation {
        difference: "artifacts, secrets and limits emit no events of the client's own",
        covers: |found| {
            only_python(found)
                && ["prefect.artifact.", "prefect.block.", "prefect.concurrency-limit."]
                    .iter()
                    .any(|kind| line(found).starts_with(kind))
        },
    },
    Explanation {
        difference: "tags without a concurrency limit are warned about, once",
        covers: |found| {
            only_ours(found)
                && log(found)
                    .is_some_and(|it| it.starts_with("No concurrency limit exists for any of the tags"))
        },
    },
    Explanation {
        difference: "the message of a flow that fails by a task's error names the task run",
        covers: |found| {
            let told = |value: &Value| value.as_str().is_some_and(|it| it.contains("ValueError: boom"));
            let fails_by_task = ["task-failure", "hooks-of-failures"].contains(&found.case.as_str());
            fails_by_task
                && !found.path.starts_with("task runs.")
                && (told(&found.reference) || told(&found.ours))
        },
    },
    Explanation {
        difference: "an error is told once in the log",
        covers: |found| {
            only_python(found)
                && log(found).is_some_and(|it| {
                    it == "Engine execution exited with unexpected exception"
                        || it.starts_with("Task run failed with exception: TaskRunTimeoutError")
                })
        },
    },
    Explanation {
        difference: "log lines of errors hold the chain of causes instead of a traceback",
        covers: |found| {
            log(found)
                .is_some_and(|it| it.starts_with("An error was encountered while running hook 'tell_too'"))
        },
    },
    Explanation {
        difference: "keys of tasks and subflows are made of their names, not of Python's functions and their code",
        covers: |found| field(found) == "task_key",
    },
    Explanation {
        difference: "runs of called deployments and of subflows carry an idempotency key",
        covers: |found| field(found) == "idempotency_key" && only_ours(found),
    },
    Explanation {
        difference: "the log of a cancelled run says that it was cancelled, and its event comes from the runner `ferryman`",
        covers: |found| {
            line(found).starts_with("prefect.runner.cancelled-flow-run of ")
                || log(found).is_some_and(|it| {
                    (only_ours(found) && it.starts_with("Cancelled flow run '"))
                        || (only_python(found) && it == "Finished in state Running()")
                })
        },
    },
    Explanation {
        difference: "a flow's hooks for running write into its log",
        covers: |found| {
            only_ours(found)
                && found.path == "logs"
                && found.case.starts_with("hooks")
                && log(found).is_some_and(|it| {
                    it.ends_with("'Running'")
                        || it == "told of Running"
                        || it.starts_with("Hook 'tell' finished")
                })
        },
    },
    Explanation {
        difference: "links in artifacts are encoded",
        covers: |found| found.path == "artifacts.link.data",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_explanation_is_documented() {
        crate::compare::assert_documented(TABLE);
    }
}
