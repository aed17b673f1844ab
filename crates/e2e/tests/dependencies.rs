//! The rules of `docs/architecture.md` about who may depend on whom, kept by looking at what Cargo resolves.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Our crates from the bottom up: each may depend on those before it that its line names, and no others.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("prefect-api", &[]),
    ("prefect-client", &["prefect-api"]),
    ("prefect-worker", &["prefect-api", "prefect-client"]),
    ("prefect-flow", &["prefect-api", "prefect-client"]),
    ("prefect-flow-s3", &["prefect-flow"]),
    ("prefect-config", &["prefect-api", "prefect-client"]),
    ("archiver", &[]),
    ("archiver-store", &["archiver"]),
    ("archiver-scicat", &["archiver"]),
    (
        "archiver-flows",
        &["prefect-api", "prefect-client", "prefect-flow", "archiver", "archiver-store", "archiver-scicat"],
    ),
];

/// Crates that are for tests and development only.
const TOOLS: [&str; 3] = ["testkit", "e2e", "xtask"];

/// Normal dependencies of our crates, by name.
fn direct() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .current_dir(e2e::programs::project_root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let dependencies = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap();
        all.iter().filter(|dependency| dependency["kind"].is_null()).map(name).collect()
    };
    packages.iter().map(|package| (name(package), dependencies(package))).collect()
}

/// All that is linked into `package`, down to the last crate.
fn linked(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}", "--package", package])
        .current_dir(e2e::programs::project_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn our_crates_depend_downwards_only() {
    let direct = direct();
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).chain(TOOLS).collect();
    assert_eq!(direct.keys().map(String::as_str).collect::<BTreeSet<_>>(), ours, "a crate without a rule");
    for (name, allowed) in ALLOWED {
        let found: BTreeSet<&str> =
            direct[name].iter().map(String::as_str).filter(|d| ours.contains(d)).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(found.is_subset(&allowed), "{name} depends on {found:?}, allowed is {allowed:?}");
    }
}

#[test]
fn each_foreign_system_has_one_owner() {
    let direct = direct();
    let owner = |prefix: &str, owners: &[&str]| {
        for (name, dependencies) in &direct {
            let named = dependencies.iter().any(|dependency| dependency.starts_with(prefix));
            let may = owners.contains(&name.as_str()) || TOOLS.contains(&name.as_str());
            assert!(!named || may, "{name} names {prefix}, only {owners:?} may");
        }
    };
    owner("aws-", &["archiver-store", "prefect-flow-s3"]);
    owner("bollard", &["prefect-worker"]);
    owner("anyhow", &["prefect-worker", "prefect-config", "archiver-flows"]);
}

#[test]
fn programs_carry_no_system_that_they_do_not_use() {
    let worker = linked("prefect-worker");
    assert!(!worker.iter().any(|name| name.starts_with("aws-sdk")), "the worker links AWS");
    let flows = linked("archiver-flows");
    assert!(!flows.iter().any(|name| name.starts_with("bollard")), "the flows link Docker");
    let sdk = linked("prefect-flow");
    assert!(!sdk.iter().any(|name| name.starts_with("aws-sdk")), "every flow links AWS");
    for package in ["prefect-worker", "prefect-config", "archiver-flows"] {
        let linked = linked(package);
        assert!(linked.len() > 50, "the tree of {package} was not read");
        for banned in ["ring", "openssl-sys", "native-tls", "tokio-tar"] {
            assert!(!linked.contains(banned), "{package} links {banned}");
        }
    }
}

#[test]
fn no_file_is_past_its_size() {
    let root = e2e::programs::project_root();
    let output = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let files: Vec<_> = listed.lines().filter(|name| root.join(name).is_file()).collect();
    assert!(files.len() > 50, "git listed {} files", files.len());
    for name in files {
        let lines = std::fs::read_to_string(root.join(name)).expect(name).lines().count();
        assert!(lines <= 600, "{name} has {lines} lines: would two names tell more than one?");
    }
}
