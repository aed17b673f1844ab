//! Supervised processes: what is left of them, and what is known of them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::time::Duration;

use testkit::process::{Command, Signal, usage_of, usage_of_tree};

const SOON: Duration = Duration::from_secs(20);

fn exists(pid: &str) -> bool {
    // A zombie that nobody has reaped yet is dead for our purposes.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

async fn gone(pid: &str) {
    tokio::time::timeout(SOON, async {
        while exists(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the process should be gone");
}

/// A shell with a child of its own, whose number it writes first.
fn family(log: &Path) -> Command {
    Command::new("sh").args(["-c", "sleep 1000 & echo \"child $!\"; echo ready; wait"]).log_to(log)
}

fn child_of(log: &str) -> String {
    log.lines().find_map(|line| line.strip_prefix("child ")).unwrap().to_owned()
}

#[tokio::test]
async fn dropping_a_process_kills_its_children_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = family(&dir.path().join("log")).spawn().unwrap();
    process.wait_for_log("ready", SOON).await.unwrap();
    let (parent, child) = (process.pid().to_string(), child_of(&process.log()));
    assert!(exists(&parent) && exists(&child));
    assert!(process.usage().unwrap().rss_peak > 0);
    drop(process);
    gone(&parent).await;
    gone(&child).await;
}

#[tokio::test]
async fn a_tree_is_its_programs_without_mere_copies_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = family(&dir.path().join("log")).spawn().unwrap();
    process.wait_for_log("ready", SOON).await.unwrap();
    let child = child_of(&process.log()).parse().unwrap();
    // The child is a copy of the shell until it is `sleep`.
    tokio::time::timeout(SOON, async {
        while std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap() != "sleep\n" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    // The watcher, which is in the tree too, is a copy of the shell.
    let (parent, child) = (process.usage().unwrap(), usage_of(child).unwrap());
    let tree = usage_of_tree(process.pid()).unwrap();
    assert_eq!(tree.rss_peak, parent.rss_peak + child.rss_peak);
    process.kill();
    process.wait(SOON).await.unwrap();
    assert_eq!(usage_of_tree(process.pid()), None);
}

#[tokio::test]
async fn stopping_a_process_leaves_no_grandchild() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = family(&dir.path().join("log")).spawn().unwrap();
    process.wait_for_log("ready", SOON).await.unwrap();
    let child = child_of(&process.log());
    process.stop(SOON).await.unwrap();
    gone(&child).await;
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_processes_along() {
    // This test's own executable is the supervisor too: it starts a family and is killed without mercy.
    if let Some(log) = std::env::var_os("FAMILY_LOG") {
        let mut process = family(Path::new(&log)).spawn().unwrap();
        process.wait(Duration::from_mins(10)).await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_supervisor_takes_its_processes_along"])
        .env("FAMILY_LOG", &log)
        .log_to(dir.path().join("supervisor"))
        .spawn()
        .unwrap();
    let child = tokio::time::timeout(SOON, async {
        loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("ready") {
                return child_of(&text);
            }
            assert!(supervisor.is_running(), "{}", supervisor.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    supervisor.signal(Signal::Kill).unwrap();
    gone(&child).await;
}

#[tokio::test]
async fn output_comes_with_the_exit_status_and_quotes_failures() {
    let output =
        Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]).output(SOON).await.unwrap();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(output.status.code(), Some(3));
    let error = output.success().unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("err"), "{error}");
}

#[tokio::test]
async fn a_deadline_ends_a_program_that_does_not() {
    let error = Command::new("sleep").arg("1000").output(Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().contains("did not end within"), "{error}");
}

#[test]
fn an_absent_program_is_named() {
    let error = Command::new("no-such-program").spawn().unwrap_err();
    assert_eq!(error.to_string(), "program no-such-program is not in PATH");
}
