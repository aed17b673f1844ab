//! The demo as a user runs it: everything happens in it, and nothing is left after it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferryman-stack"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

/// Names of networks and images that carry a demo's name.
fn traces(name: &str) -> Vec<String> {
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let networks = docker(&["network", "ls", "--format", "network {{.Name}}"]);
    let images = docker(&["images", "--format", "image {{.Repository}}:{{.Tag}}"]);
    networks.lines().chain(images.lines()).filter(|line| line.contains(name)).map(str::to_owned).collect()
}

/// Ids of the containers on a demo's network; with `label` only those that carry it.
fn containers(network: &str, label: Option<&str>) -> Vec<String> {
    let mut command = Command::new("docker");
    command.args(["ps", "--all", "--quiet", "--filter", &format!("network={network}")]);
    command.args(label.map(|label| format!("--filter=label={label}")));
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
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

#[test]
fn a_demo_interrupted_at_its_start_leaves_nothing() {
    // The network is the first thing that the demo makes and the last that it removes.
    interrupt("-INT", |network| !traces(network).is_empty());
}

#[test]
fn a_demo_terminated_while_a_flow_runs_leaves_nothing() {
    interrupt("-TERM", |network| !containers(network, Some("io.prefect.flow-run-id")).is_empty());
}

/// Interrupts a demo at a moment, which is told by the name of its network.
fn interrupt(signal: &str, moment: impl Fn(&str) -> bool) {
    let (dataset, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    awkward_dataset(dataset.path());
    let mut command = demo(&["--dataset", dataset.path().to_str().unwrap()]);
    let mut child = command.env("TMPDIR", temporary.path()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let network = lines.find_map(|line| Some(line.strip_prefix("network: ")?.to_owned())).unwrap();
    // A full pipe would stop the demo.
    let rest = std::thread::spawn(move || lines.collect::<Vec<_>>());
    let started = Instant::now();
    while !moment(&network) {
        assert!(started.elapsed() < Duration::from_mins(4), "the moment did not come");
        assert!(child.try_wait().unwrap().is_none(), "the demo ended before: {:?}", rest.join());
    }
    let made = containers(&network, None);
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ended = child.wait().unwrap();
    assert!(!ended.success(), "an interrupted demo is no success");
    assert_eq!(traces(&network), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "a temporary file was left");
    for id in made {
        let found = Command::new("docker").args(["inspect", &id]).output().unwrap();
        assert!(!found.status.success(), "the container {id} was left");
    }
}

#[test]
fn a_dataset_that_is_not_there_is_told_before_anything_starts() {
    let output = demo(&["--dataset", "/nonexistent/dataset"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/dataset"));
}
