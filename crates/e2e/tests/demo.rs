//! The demo as a user runs it: everything happens in it, and nothing is left after it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferryman-stack"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

/// Names of containers, networks and images, and temporary files: what must be as before.
fn traces() -> Vec<String> {
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut traces: Vec<String> = docker(&["ps", "--all", "--format", "container {{.Names}}"])
        .lines()
        .chain(docker(&["network", "ls", "--format", "network {{.Name}}"]).lines())
        .chain(docker(&["images", "--format", "image {{.Repository}}:{{.Tag}}"]).lines())
        .filter(|line| line.contains("demo"))
        .map(str::to_owned)
        .collect();
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if name.starts_with("ferryman-demo") {
            traces.push(name);
        }
    }
    traces
}

fn awkward_dataset(root: &Path) {
    let write = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("plain.txt", b"text");
    write("empty", b"");
    write("with spaces/and more of them.txt", b"spaces");
    write("größe/データ.bin", "nicht ASCII".as_bytes());
    write(&format!("{}/{}", "long".repeat(30), "name".repeat(40)), b"over 100 bytes");
    write("quote's \"and\" $(dollar) `tick`;&.txt", b"hostile to shells");
    // Over one part, so that it travels as a multipart upload.
    let large: Vec<u8> = (0..40u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    write("large.bin", &large);
}

fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_dataset_with_awkward_names_travels_there_and_back() {
    let dataset = tempfile::tempdir().unwrap();
    awkward_dataset(dataset.path());
    let output = demo(&["--json", "--dataset", dataset.path().to_str().unwrap()]).output().unwrap();
    let summary = summary(&output);
    assert_eq!(summary["ok"], true);
    assert_eq!(summary["files"], 7);
    assert_eq!(summary["jobs"], serde_json::json!(["finishedSuccessful", "finishedSuccessful"]));
    for run in summary["runs"].as_array().unwrap() {
        let states: Vec<_> =
            run["states"].as_array().unwrap().iter().map(|state| state.as_str().unwrap()).collect();
        assert_eq!(states.last(), Some(&"Completed"), "{states:?}");
        assert_eq!(run["scratch_files"], 0, "the container wrote to its file system");
        assert!(!run["subflows"].as_array().unwrap().is_empty());
    }
    let resident = summary["runs"][0]["resident_bytes"].as_u64().unwrap();
    assert!(resident < 256 << 20, "{resident} bytes of resident memory");
}

/// Ids of the containers of flow runs on the demo's network. Other tests have theirs on other networks.
fn run_containers() -> Vec<String> {
    let Some(network) = traces().into_iter().find_map(|line| Some(line.strip_prefix("network ")?.to_owned()))
    else {
        return Vec::new();
    };
    let network = format!("network={network}");
    let filters =
        ["ps", "--all", "--quiet", "--filter", "label=io.prefect.flow-run-id", "--filter", &network];
    let output = Command::new("docker").args(filters).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_demo_interrupted_at_its_start_leaves_nothing() {
    // The network is the first thing that the demo makes and the last that it removes.
    interrupt("-INT", || traces().iter().any(|line| line.starts_with("network")));
}

#[test]
fn a_demo_terminated_while_a_flow_runs_leaves_nothing() {
    interrupt("-TERM", || !run_containers().is_empty());
}

fn interrupt(signal: &str, moment: impl Fn() -> bool) {
    let dataset = tempfile::tempdir().unwrap();
    awkward_dataset(dataset.path());
    let mut child =
        demo(&["--dataset", dataset.path().to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !moment() {
        assert!(started.elapsed() < Duration::from_mins(4), "the moment did not come");
        assert!(child.try_wait().unwrap().is_none(), "the demo ended before");
    }
    let containers = run_containers();
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ended = child.wait().unwrap();
    assert!(!ended.success(), "an interrupted demo is no success");
    assert_eq!(traces(), Vec::<String>::new());
    for id in containers {
        let found = Command::new("docker").args(["inspect", &id]).output().unwrap();
        assert!(!found.status.success(), "the container {id} of a flow run was left");
    }
}

#[test]
fn a_dataset_that_is_not_there_is_told_before_anything_starts() {
    let output = demo(&["--dataset", "/nonexistent/dataset"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/dataset"));
}
