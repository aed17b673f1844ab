//! From where the files of the engine's host can be seen.

use super::Probe;
use crate::identity;
use crate::launcher::DockerLauncher;
use crate::launcher::docker::survey::Facts;

/// A place to look from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Vantage {
    /// This process sees the same files as the engine.
    Host,
    /// A container of this image can look.
    Container(String),
    /// None: why, and what can be done.
    Nowhere(String, &'static str),
}

const BY_PROBE: &str = "add --probe-mounts: a container of the worker's own image looks for a moment";
const BY_IMAGE: &str = "add --probe-image IMAGE with an image of this worker that the engine has";

/// The best place to look from that the user allows.
pub(super) async fn find(docker: &DockerLauncher, facts: Option<&Facts>, probe: &Probe) -> Vantage {
    let container = identity::container_id();
    let distance = distance(container.is_some(), facts, &identity::hostname());
    match (probe, distance, container) {
        (Probe::Image(image), ..) => Vantage::Container(image.clone()),
        (_, None, _) => Vantage::Host,
        (Probe::No, Some(why), _) => Vantage::Nowhere(why.to_owned(), BY_PROBE),
        (Probe::OwnImage, Some(why), None) => Vantage::Nowhere(why.to_owned(), BY_IMAGE),
        (Probe::OwnImage, Some(why), Some(id)) => match docker.image_of(&id).await {
            Ok(Some(image)) => Vantage::Container(image),
            _ => Vantage::Nowhere(format!("{why}, and the engine does not know this container"), BY_IMAGE),
        },
    }
}

/// What is between this process and the files of the engine's host; `None` if nothing is. Images leave the
/// marks of containers on machines that are none: what proves that we are there is the engine's own directory.
fn distance(in_container: bool, facts: Option<&Facts>, hostname: &str) -> Option<&'static str> {
    match facts {
        _ if in_container => Some("this process is in a container and does not see the files of the host"),
        Some(facts) if facts.address.starts_with("unix://") && facts.host == hostname => {
            let sees = facts.directory.is_dir();
            (!sees).then_some("this process does not see the files of the engine's host")
        }
        _ => Some("the engine is on another machine, whose files this process does not see"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_host_are_seen_only_on_the_host() {
        let facts = |address: &str, host: &str| Facts {
            address: address.to_owned(),
            version: String::new(),
            api: String::new(),
            host: host.to_owned(),
            directory: std::env::temp_dir(),
            time: None,
            warnings: Vec::new(),
        };
        let local = facts("unix:///var/run/docker.sock", "here");
        assert_eq!(distance(false, Some(&local), "here"), None);
        assert!(distance(true, Some(&local), "here").unwrap().contains("in a container"));
        let elsewhere = Facts { directory: "/no/such".into(), ..local.clone() };
        assert!(distance(false, Some(&elsewhere), "here").unwrap().contains("does not see"));
        // A socket that is forwarded from elsewhere.
        assert!(distance(false, Some(&local), "elsewhere").unwrap().contains("another machine"));
        assert!(distance(false, Some(&facts("tcp://here:2376", "here")), "here").is_some());
    }
}
