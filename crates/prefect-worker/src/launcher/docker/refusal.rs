//! What an engine means when it refuses: its words, put into classes that have a remedy.

use super::super::Refusal;

/// The class of an engine's message, in any of the wordings of Docker 19 to 28.
pub(super) fn of(message: &str) -> Option<Refusal> {
    let text = message.to_ascii_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    // The full disk comes first: it may be the cause of everything else.
    Some(if any(&["no space left on device", "disk quota exceeded"]) {
        Refusal::DiskFull
    } else if any(&["exec format error", "does not match the specified platform", "no matching manifest for"])
    {
        Refusal::WrongArchitecture
    } else if any(&["executable file not found", "no such file or directory: unknown"])
        || (text.contains("exec: ") && text.contains("no such file or directory"))
    {
        Refusal::CommandNotFound
    } else if text.contains("permission denied") && any(&["exec: ", "starting container process"]) {
        Refusal::CommandNotExecutable
    } else if any(&["port is already allocated", "address already in use"]) {
        Refusal::PortTaken
    } else if text.contains("container name") && text.contains("already in use") {
        Refusal::NameTaken
    } else if (text.contains("task ") && text.contains(": already exists"))
        || any(&["container with given id already exists", "container with id exists"])
    {
        Refusal::StartInterrupted
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_are_understood() {
        let runc = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                    container process:";
        for (message, refusal) in [
            (format!("{runc} exec: \"nope\": executable file not found in $PATH: unknown"), Refusal::CommandNotFound),
            (
                format!("{runc} exec: \"/no/such\": stat /no/such: no such file or directory: unknown"),
                Refusal::CommandNotFound,
            ),
            (
                format!("{runc} exec: \"/etc/passwd\": permission denied: unknown"),
                Refusal::CommandNotExecutable,
            ),
            (format!("{runc} exec /app: exec format error"), Refusal::WrongArchitecture),
            (
                "image with reference x was found but does not match the specified platform: wanted linux/arm64, \
                 actual: linux/amd64"
                    .to_owned(),
                Refusal::WrongArchitecture,
            ),
            ("write /var/lib/docker/tmp/x: no space left on device".to_owned(), Refusal::DiskFull),
            (
                "driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:80 failed: port \
                 is already allocated"
                    .to_owned(),
                Refusal::PortTaken,
            ),
            (
                "Conflict. The container name \"/x\" is already in use by container \"y\"".to_owned(),
                Refusal::NameTaken,
            ),
            ("task eea51ae7: already exists".to_owned(), Refusal::StartInterrupted),
            ("failed to create task for container: task eea5: already exists: unknown".to_owned(), Refusal::StartInterrupted),
            ("OCI runtime create failed: container with id exists: eea5: unknown".to_owned(), Refusal::StartInterrupted),
        ] {
            assert_eq!(of(&message), Some(refusal), "{message}");
        }
        for other in ["Ports are not available", "error while mounting: permission denied", ""] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
