//! `compose.yaml` is what it says: valid for the oldest Compose that we support, and complete.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::process::Command;

fn compose(arguments: &[&str]) -> String {
    let output = Command::new("docker-compose")
        .args(["--file", "compose.yaml"])
        .args(arguments)
        .current_dir(e2e::programs::project_root())
        .output()
        .expect("docker-compose is missing; install it: `apt-get install docker-compose`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn compose_1_29_takes_the_file() {
    let services = compose(&["config", "--services"]);
    let services: BTreeSet<_> = services.lines().collect();
    let expected = [
        "postgres",
        "prefect-archival-worker",
        "prefect-config",
        "prefect-flows-deployment",
        "prefect-retrieval-worker",
        "prefect-server",
        "s3",
        "scicat",
    ];
    assert_eq!(services, BTreeSet::from(expected));
}

#[test]
fn no_secret_is_in_an_environment_or_a_command() {
    let resolved = compose(&["config"]);
    for line in resolved.lines().filter(|line| line.to_lowercase().contains("password")) {
        let reference = line.contains("_FILE") || line.contains("/run/secrets") || line.contains(".secrets/");
        let name = line.trim().trim_start_matches("- ").ends_with("password:")
            || line.trim().starts_with("source:")
            || line.trim().starts_with("- ") && line.trim().ends_with("_password");
        assert!(reference || name, "{line}");
    }
}
