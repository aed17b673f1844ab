//! What the end of infrastructure means for its run.

use prefect_api::flow_run::FlowRun;
use prefect_api::state::StateType;
use uuid::Uuid;

use crate::launcher::{Memory, Outcome, is_same};
use crate::unit::entered_by;

/// What the worker has to tell the server about a run whose infrastructure ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The run's state is right as it is.
    Settled,
    /// The run crashed.
    Crashed {
        /// The message of the state.
        message: String,
        /// Advice for the run's log.
        advice: Option<&'static str>,
    },
    /// Somebody wanted the run cancelled, and now it is.
    Cancelled,
    /// The program did what it was to do, and could not say so itself.
    Completed,
}

/// What makes a run ours: others may have taken it since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    /// Transition ids of the states that we proposed for it.
    pub(crate) proposals: &'a [Uuid],
    /// Its infrastructure, as we told the server.
    pub(crate) infrastructure_pid: &'a str,
    /// The program does not report itself: its exit code says how it went.
    pub(crate) report_exit_state: bool,
    /// The kind of the launcher, which decides about the words.
    pub(crate) kind: &'static str,
}

impl Claim<'_> {
    fn is_container(&self) -> bool {
        self.kind == "docker"
    }
}

/// Whether the run still is where we put it.
pub(crate) fn untouched(run: &FlowRun, proposals: &[Uuid]) -> bool {
    run.state_type == Some(StateType::Pending) && (run.state.is_none() || entered_by(run, proposals))
}

/// Judges the end of infrastructure by what the server says about the run.
pub(crate) fn verdict(outcome: &Outcome, run: &FlowRun, claim: Claim<'_>) -> Verdict {
    let Some(state) = run.state_type else { return Verdict::Settled };
    let still_in = |expected| state == expected;
    let same_infrastructure =
        run.infrastructure_pid.as_deref().is_none_or(|pid| is_same(pid, claim.infrastructure_pid));
    let retrying_in_process = run.empirical_policy.retry_type.as_deref() == Some("in_process");

    if still_in(StateType::Cancelling) && same_infrastructure {
        return Verdict::Cancelled;
    }
    let failed = !matches!(outcome, Outcome::Exited { code: 0, .. });
    // A suspended run has no process; one that only pauses has, and nobody could resume it now.
    let paused_in_process = run.state.as_ref().is_some_and(|state| !state.state_details.pause_reschedule);
    let unfinished = untouched(run, claim.proposals)
        || (failed && still_in(StateType::Paused) && paused_in_process && same_infrastructure)
        || (still_in(StateType::Running) && same_infrastructure)
        || (still_in(StateType::Scheduled) && retrying_in_process && same_infrastructure);
    if !unfinished {
        return Verdict::Settled;
    }
    match outcome {
        Outcome::Exited { code: 0, .. } if still_in(StateType::Scheduled) => Verdict::Settled,
        Outcome::Exited { code: 0, .. } if claim.report_exit_state => Verdict::Completed,
        Outcome::Exited { code: 0, .. } => Verdict::Crashed {
            message: format!(
                "Flow run infrastructure exited with status code 0, but the run was still {}: \
                 its process ended without reporting a result.",
                state.default_name()
            ),
            advice: Some(
                "Check that the command of the job runs the flow (by default `prefect flow-run execute`) and that \
                 the process can reach the Prefect API.",
            ),
        },
        Outcome::Exited { code, out_of_memory, error, memory } => {
            let (explanation, advice) = explain(if *out_of_memory { 137 } else { *code });
            let mut message =
                format!("Flow run infrastructure exited with non-zero status code {code}. {explanation}");
            message.push_str(&detail(*code, *out_of_memory, *memory, claim.is_container()));
            if let Some(error) = error {
                message.push_str(if claim.is_container() {
                    " The container engine says: "
                } else {
                    " Its supervisor says: "
                });
                message.push_str(error);
            }
            Verdict::Crashed { message, advice: Some(advice) }
        }
        Outcome::Vanished => Verdict::Crashed {
            message: "Flow run infrastructure disappeared before its exit was seen.".to_owned(),
            advice: Some(if claim.is_container() {
                "Somebody or something removed the container while it was running."
            } else {
                "Its supervisor was killed, the machine was restarted, or the state directory of the worker was removed \
                 while it was running."
            }),
        },
    }
}

/// What is known beyond the words of the contract: the signal, and how much memory there was.
fn detail(code: i64, out_of_memory: bool, memory: Memory, is_container: bool) -> String {
    let amount = |bytes: Option<u64>| bytes.map(|bytes| format!("{} MiB", bytes.div_ceil(1 << 20)));
    if out_of_memory {
        let limit = amount(memory.limit).map_or_else(
            || " The kernel killed it: the machine was out of memory.".to_owned(),
            |limit| format!(" The kernel killed it: memory limit {limit}"),
        );
        return match (amount(memory.peak), memory.limit) {
            (Some(peak), Some(_)) => format!("{limit}, highest use seen {peak}."),
            (None, Some(_)) => format!("{limit}."),
            (_, None) => limit,
        };
    }
    match code {
        137 if is_container => {
            " It was ended by SIGKILL, and the engine saw no lack of memory: somebody killed it.".to_owned()
        }
        129..=192 => signal(code - 128).map(|name| format!(" It was ended by {name}.")).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The name of a signal on Linux.
const fn signal(number: i64) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// What the last output says about the cause, where the exit code says nothing.
pub(crate) fn clue(tail: &[String]) -> Option<&'static str> {
    let says = |words: &str| tail.iter().any(|line| line.to_ascii_lowercase().contains(words));
    if says("exec format error") {
        Some("Its last output tells of a program for another architecture: use an image for this machine's.")
    } else if says("no space left on device") {
        Some(
            "Its last output tells of a full disk: free space on the machine, or give it a volume with more.",
        )
    } else {
        None
    }
}

/// What an exit code means, and what to do about it, in the words the UI shows for any worker.
fn explain(code: i64) -> (&'static str, &'static str) {
    match code {
        -9 => (
            "Process exited due to a SIGKILL signal. Typically caused by the operating system terminating the \
             process for exceeding memory limits, or by manual cancellation.",
            "Check whether the flow run exceeded its memory allocation. If running in a container, increase the \
             memory limit. If this was intentional cancellation, no action is needed.",
        ),
        -15 => (
            "Process exited due to a SIGTERM signal. Typically caused by graceful shutdown or manual cancellation.",
            "If this was caused by cancellation, no action is needed. Otherwise, check for infrastructure scaling \
             events or deployment rollovers.",
        ),
        1 => (
            "Process exited with a general error.",
            "Check the flow run logs for an unhandled exception or assertion error.",
        ),
        125 => (
            "Container failed to run (Docker/OCI exit code 125).",
            "Verify the container image exists, the entrypoint is correct, and the container runtime is healthy.",
        ),
        126 => (
            "Command found but not executable (permission denied).",
            "Check file permissions on the entrypoint script or binary. Ensure the file has the executable bit set.",
        ),
        127 => (
            "Command not found.",
            "Verify that the entrypoint command or script is installed in the execution environment. Check your \
             PATH and container image contents.",
        ),
        137 => (
            "Process was killed, likely due to an out-of-memory (OOM) condition.",
            "Increase the memory allocation for the flow run infrastructure. In Kubernetes, raise the memory limit \
             in the job template. In ECS, increase the task memory.",
        ),
        143 => (
            "Process received SIGTERM via the container runtime. This is the containerized equivalent of exit code \
             -15.",
            "If this was caused by cancellation or a scaling event, no action is needed. Otherwise, check for pod \
             evictions or ECS task stops.",
        ),
        247 => (
            "Process was terminated due to high memory usage.",
            "Increase the memory allocation for the flow run infrastructure. Consider profiling memory usage to \
             find the source of consumption.",
        ),
        _ => (
            "Process exited with an unexpected status code.",
            "Check the flow run logs and infrastructure logs for more details.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OURS: &str = "http+docker://localhost:abc";

    fn run(change: &Value) -> FlowRun {
        let mut run = json!({
            "id": Uuid::nil(), "name": "n", "flow_id": Uuid::nil(), "infrastructure_pid": OURS,
            "state_type": "PENDING",
        });
        run.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(run).unwrap()
    }

    fn state(transition: Uuid, kind: &str) -> Value {
        json!({"state_type": kind, "state": {
            "id": Uuid::now_v7(), "type": kind, "timestamp": "2026-11-22T04:42:18Z",
            "state_details": {"transition_id": transition},
        }})
    }

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn judge(outcome: Outcome, run: &FlowRun) -> Verdict {
        let proposals = [Uuid::max(), Uuid::nil()];
        verdict(
            &outcome,
            run,
            Claim {
                proposals: &proposals,
                infrastructure_pid: OURS,
                report_exit_state: false,
                kind: "docker",
            },
        )
    }

    fn exited(code: i64) -> Outcome {
        Outcome::Exited { code, out_of_memory: false, error: None, memory: Memory::default() }
    }

    fn message(verdict: Verdict) -> String {
        match verdict {
            Verdict::Crashed { message, .. } => message,
            other => panic!("not a crash: {other:?}"),
        }
    }

    #[test]
    fn a_non_zero_exit_crashes_in_the_words_of_the_contract() {
        assert_eq!(
            message(judge(exited(3), &run(&json!({})))),
            "Flow run infrastructure exited with non-zero status code 3. Process exited with an unexpected status code."
        );
        let memory = Memory { limit: Some(64 << 20), peak: Some(67_000_000) };
        let oom = Outcome::Exited { code: 137, out_of_memory: true, error: None, memory };
        assert_eq!(
            message(judge(oom, &run(&json!({"state_type": "RUNNING"})))),
            "Flow run infrastructure exited with non-zero status code 137. Process was killed, likely due to an \
             out-of-memory (OOM) condition. The kernel killed it: memory limit 64 MiB, highest use seen 64 MiB."
        );
        for (code, part) in [(137, "SIGKILL"), (139, "SIGSEGV"), (143, "SIGTERM")] {
            assert!(message(judge(exited(code), &run(&json!({})))).contains(part), "{code}");
        }
    }

    #[test]
    fn the_exit_of_a_program_that_does_not_report_is_its_result() {
        let judge = |outcome: Outcome, kind: &str| {
            let proposals = [Uuid::nil()];
            let claim = Claim {
                proposals: &proposals,
                infrastructure_pid: OURS,
                report_exit_state: true,
                kind: "docker",
            };
            verdict(&outcome, &run(&state(Uuid::nil(), kind)), claim)
        };
        for kind in ["PENDING", "RUNNING"] {
            assert_eq!(judge(exited(0), kind), Verdict::Completed);
            assert!(matches!(judge(exited(1), kind), Verdict::Crashed { .. }));
        }
        assert_eq!(judge(exited(0), "FAILED"), Verdict::Settled);
        assert_eq!(judge(exited(0), "CANCELLING"), Verdict::Cancelled);
    }

    #[test]
    fn the_last_output_may_tell_the_cause() {
        let clue = |line: &str| clue(&["first".to_owned(), line.to_owned()]);
        assert!(clue("exec /flow: exec format error").unwrap().contains("architecture"));
        assert!(clue("OSError: [Errno 28] No space left on device").unwrap().contains("full disk"));
        assert_eq!(clue("all is well"), None);
    }

    #[test]
    fn exit_0_without_a_report_is_a_crash_told_as_such() {
        for (kind, word) in [("PENDING", "Pending"), ("RUNNING", "Running")] {
            let text = message(judge(exited(0), &run(&state(Uuid::nil(), kind))));
            assert!(text.contains("status code 0") && text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_reported_end_stays() {
        for kind in ["COMPLETED", "FAILED", "CRASHED", "CANCELLED", "PAUSED", "SCHEDULED", "NEWER"] {
            for code in [0, 1] {
                assert_eq!(
                    judge(exited(code), &run(&json!({"state_type": kind}))),
                    Verdict::Settled,
                    "{kind}"
                );
            }
        }
    }

    #[test]
    fn a_run_that_was_being_cancelled_is_cancelled_by_its_end() {
        for outcome in [exited(0), exited(137), Outcome::Vanished] {
            assert_eq!(judge(outcome, &run(&json!({"state_type": "CANCELLING"}))), Verdict::Cancelled);
        }
    }

    #[test]
    fn a_run_that_others_have_taken_is_left_alone() {
        let claimed_again = run(&state(Uuid::from_u128(7), "PENDING"));
        assert_eq!(judge(exited(0), &claimed_again), Verdict::Settled);
        for kind in ["RUNNING", "CANCELLING"] {
            let elsewhere =
                run(&json!({"state_type": kind, "infrastructure_pid": "http+docker://localhost:other"}));
            assert_eq!(judge(exited(1), &elsewhere), Verdict::Settled, "{kind}");
        }
    }

    #[test]
    fn a_process_that_dies_between_its_retries_has_crashed() {
        let waiting =
            run(&json!({"state_type": "SCHEDULED", "empirical_policy": {"retry_type": "in_process"}}));
        assert!(matches!(judge(exited(137), &waiting), Verdict::Crashed { .. }));
    }

    #[test]
    fn a_process_that_dies_while_it_pauses_has_crashed_but_a_suspended_run_has_no_process() {
        let mut paused = state(Uuid::from_u128(7), "PAUSED");
        assert!(matches!(judge(exited(137), &run(&paused)), Verdict::Crashed { .. }));
        assert_eq!(judge(exited(0), &run(&paused)), Verdict::Settled);
        paused["state"]["state_details"]["pause_reschedule"] = json!(true);
        assert_eq!(judge(exited(137), &run(&paused)), Verdict::Settled);
    }

    #[test]
    fn processes_are_not_called_containers() {
        let process = |outcome: &Outcome| {
            let claim =
                Claim { proposals: &[], infrastructure_pid: OURS, report_exit_state: false, kind: "process" };
            match verdict(outcome, &run(&json!({"state_type": "RUNNING"})), claim) {
                Verdict::Crashed { message, advice } => format!("{message} {}", advice.unwrap()),
                other => panic!("not a crash: {other:?}"),
            }
        };
        let vanished = process(&Outcome::Vanished);
        assert!(vanished.contains("supervisor") && !vanished.contains("container"), "{vanished}");
        let failed = Outcome::Exited {
            code: 137,
            out_of_memory: false,
            error: Some("no record".to_owned()),
            memory: Memory::default(),
        };
        let failed = process(&failed);
        assert!(failed.contains("Its supervisor says: no record") && failed.contains("SIGKILL"), "{failed}");
        assert!(!failed.contains("engine"), "{failed}");
    }

    #[test]
    fn vanished_infrastructure_is_a_crash() {
        assert!(message(judge(Outcome::Vanished, &run(&json!({})))).contains("disappeared"));
    }
}
