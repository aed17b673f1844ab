//! What jobs run on: the container engine, or this machine's processes.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

use jiff::{SignedDuration, Timestamp};

use super::clock::Sighting;
use super::pool::{Kind, Subjects};
use super::{Finding, Request, in_time};
use crate::error::{Error, chain};
use crate::launcher::docker::survey::Facts;
use crate::launcher::{DockerLauncher, LaunchError, ProcessLauncher};
use crate::policy::Policy;

/// What can run jobs.
#[derive(Default)]
pub(super) struct Launchers {
    pub(super) docker: Option<DockerLauncher>,
    pub(super) process: Option<ProcessLauncher>,
    /// What the engine says about itself.
    pub(super) facts: Option<Facts>,
}

/// Looks at what the pools need; at the engine too if it is not known what they need.
pub(super) async fn look(
    request: &Request,
    subjects: &Subjects,
    policy: Option<Policy>,
    findings: &mut Vec<Finding>,
) -> Launchers {
    let of_request = request.kind.as_deref().and_then(Kind::parse);
    let mut kinds: BTreeSet<Kind> = subjects.served.iter().map(|(served, _)| served.kind).collect();
    kinds.extend(of_request);
    if kinds.is_empty() {
        kinds.insert(Kind::Docker);
    }
    let mut launchers = Launchers::default();
    if kinds.contains(&Kind::Docker) {
        look_at_engine(policy.clone(), &mut launchers, findings).await;
    }
    if kinds.contains(&Kind::Process) {
        if policy.is_some() {
            let error = Error::PolicyWithoutContainers { kind: "process".to_owned() };
            let remedy = "serve this pool by a worker without a policy";
            findings.push(Finding::failed("policy", format!("failed to {error}"), remedy));
        }
        match ProcessLauncher::open(&environment) {
            Ok(launcher) => {
                findings.push(Finding::ok("processes", "the state directory of the worker can be used"));
                launchers.process = Some(launcher);
            }
            Err(error) => {
                let remedy = "name a directory that this user can write to in PREFECT_WORKER_STATE_DIRECTORY";
                findings.push(Finding::failed("processes", format!("failed to {}", chain(&error)), remedy));
            }
        }
    }
    launchers
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn look_at_engine(policy: Option<Policy>, launchers: &mut Launchers, findings: &mut Vec<Finding>) {
    let connected = async {
        let launcher = DockerLauncher::connect(&environment).await?;
        let asked = Timestamp::now();
        let facts = launcher.facts().await?;
        Ok::<_, LaunchError>((launcher, facts, (asked, Timestamp::now())))
    };
    let (launcher, facts, ours) = match in_time(connected).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => {
            let remedy = remedy(&error);
            findings.push(Finding::failed("engine", format!("failed to {}", chain(&error)), remedy));
            return;
        }
        Err(silence) => {
            findings.push(Finding::failed("engine", silence, "look at the log of the engine"));
            return;
        }
    };
    let Facts { address, version, api, host, .. } = &facts;
    findings.push(Finding::ok("engine", format!("{address}: version {version}, API {api}, on {host}")));
    for warning in &facts.warnings {
        let remedy = "jobs that ask for it run without it: see the documentation of the engine";
        findings.push(Finding::warning("engine", format!("it says {warning:?}"), remedy));
    }
    if let Some(theirs) = facts.time {
        let sighting = Sighting { ours, theirs, coarseness: SignedDuration::ZERO };
        findings.push(sighting.finding("of the engine"));
    }
    launchers.docker = Some(match policy {
        Some(policy) => launcher.with_policy(policy),
        None => launcher,
    });
    launchers.facts = Some(facts);
}

/// What can be done about an engine that does not let us in.
fn remedy(error: &LaunchError) -> String {
    let LaunchError::Unreachable { address, message } = error else {
        return "correct the DOCKER_… variable that the message names".to_owned();
    };
    let socket = address.strip_prefix("unix://");
    match socket {
        Some(socket) if message.contains("ermission denied") => {
            let group = std::fs::metadata(socket).map(|socket| socket.gid());
            let group = group.map_or_else(|_| "GID".to_owned(), |gid| gid.to_string());
            format!(
                "let this user use {socket}: its group is {group} (docker run --group-add {group}, group_add in a \
                 compose file, usermod --append --groups {group} USER)"
            )
        }
        Some(socket) => format!(
            "is the engine running? In a container, mount its socket ({socket}); elsewhere, set DOCKER_HOST"
        ),
        None => {
            "is the engine running, does it listen there, and are DOCKER_TLS_VERIFY and DOCKER_CERT_PATH right?"
                .to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_use_the_socket_is_told_its_group() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let group = file.path().metadata().unwrap().gid();
        let address = format!("unix://{}", file.path().display());
        let of = |message: &str| {
            remedy(&LaunchError::Unreachable { address: address.clone(), message: message.to_owned() })
        };
        let denied = of("client error (Connect): Permission denied (os error 13)");
        assert!(denied.contains(&format!("--group-add {group}")), "{denied}");
        assert!(of("Connection refused").contains("is the engine running?"));
    }
}
