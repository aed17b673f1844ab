//! What jobs need of the engine: images, networks, volumes.

use super::deployments::{Wanted, users};
use super::{Finding, in_time};
use crate::error::chain;
use crate::launcher::docker::PullPolicy;
use crate::launcher::docker::survey::{ImageNeed, Presence};
use crate::launcher::{DockerLauncher, LaunchError};

/// Looks whether the engine has what the jobs need.
pub(super) async fn look(docker: &DockerLauncher, wanted: &Wanted, findings: &mut Vec<Finding>) {
    for (need, deployments) in &wanted.images {
        let finding = match answer(in_time(docker.presence(need)).await) {
            Ok(presence) => image(need, &presence),
            Err(problem) => Finding::failed("image", problem, "look at the log of the engine"),
        };
        findings.push(finding.about(&format!("{} ({})", need.reference, users(deployments))));
    }
    for (name, deployments) in &wanted.networks {
        let finding = match answer(in_time(docker.has_network(name)).await) {
            Ok(true) => Finding::ok("network", "it is there"),
            Ok(false) => Finding::failed(
                "network",
                "the engine has none of this name",
                format!(
                    "docker network create {name}, or correct the job variables networks and network_mode"
                ),
            ),
            Err(problem) => Finding::failed("network", problem, "look at the log of the engine"),
        };
        findings.push(finding.about(&format!("{name} ({})", users(deployments))));
    }
    for (name, deployments) in &wanted.volumes {
        let finding = match answer(in_time(docker.has_volume(name)).await) {
            Ok(true) => Finding::ok("volume", "it is there"),
            Ok(false) => Finding::warning(
                "volume",
                "the engine has none of this name: the first run gets an empty one",
                format!("docker volume create {name}, or correct the job variable volumes"),
            ),
            Err(problem) => Finding::failed("volume", problem, "look at the log of the engine"),
        };
        findings.push(finding.about(&format!("{name} ({})", users(deployments))));
    }
}

fn answer<T>(answer: Result<Result<T, LaunchError>, String>) -> Result<T, String> {
    answer?.map_err(|error| format!("failed to {}", chain(&error)))
}

/// Whether the image will be there when a run needs it, as far as the engine knows: registries are not asked.
fn image(need: &ImageNeed, presence: &Presence) -> Finding {
    let registry = need.registry();
    let here = match presence {
        Presence::Here(identity) => format!("it is here: {identity}"),
        Presence::OtherPlatform => format!("the one that is here is not for {}", need.platform),
        Presence::Absent => "it is not here".to_owned(),
    };
    match (need.pull_policy, presence) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Presence::Here(_)) => Finding::ok("image", here),
        (PullPolicy::Never, Presence::Absent | Presence::OtherPlatform) => Finding::failed(
            "image",
            format!("{here}, and its image_pull_policy is Never"),
            "pull or build it on this engine, or choose another image_pull_policy",
        ),
        (PullPolicy::IfNotPresent, _) => Finding::warning(
            "image",
            format!("{here}: the first run waits until it is pulled from {registry}"),
            format!("docker pull {}", need.reference),
        ),
        (PullPolicy::Always | PullPolicy::IfPossible, Presence::Here(_)) => {
            Finding::ok("image", format!("{here}; every run asks {registry} for a newer one"))
        }
        (PullPolicy::Always | PullPolicy::IfPossible, _) => Finding::warning(
            "image",
            format!("{here}: whether {registry} gives it shows at the first run"),
            format!("docker pull {}", need.reference),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn an_image_is_judged_by_its_pull_policy() {
        let here = Presence::Here("sha256:x".to_owned());
        for (pull_policy, presence, verdict) in [
            (PullPolicy::Never, &here, Verdict::Ok),
            (PullPolicy::Never, &Presence::Absent, Verdict::Failed),
            (PullPolicy::Never, &Presence::OtherPlatform, Verdict::Failed),
            (PullPolicy::IfNotPresent, &here, Verdict::Ok),
            (PullPolicy::IfNotPresent, &Presence::Absent, Verdict::Warning),
            (PullPolicy::Always, &here, Verdict::Ok),
            (PullPolicy::Always, &Presence::Absent, Verdict::Warning),
            (PullPolicy::IfPossible, &Presence::OtherPlatform, Verdict::Warning),
        ] {
            let need =
                ImageNeed { reference: "r.example/i:1".to_owned(), platform: String::new(), pull_policy };
            let finding = image(&need, presence);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
    }
}
