//! Credential helpers: programs `docker-credential-NAME` that keep the credentials of a machine's user.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::credentials::Login;

const DEADLINE: Duration = Duration::from_secs(30);
/// The most that is read of an answer, in bytes.
const LONGEST: u64 = 64 * 1024;
/// How helpers say, on standard output, that they know nothing.
const UNKNOWN: &str = "credentials not found";
/// The user name that makes the secret an identity token.
const TOKEN: &str = "<token>";

/// Why a helper gave no answer. What it wrote is never shown: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("it cannot be run: {0}")]
    Run(#[from] io::Error),
    #[error("it took longer than {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("it ended with {0}")]
    Failed(std::process::ExitStatus),
    #[error("its answer is not what helpers answer: JSON with Username and Secret")]
    Answer,
}

/// The answer of a helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Answer {
    username: String,
    secret: String,
}

impl Answer {
    pub(super) fn login(self, registry: &str) -> Login {
        if self.username == TOKEN {
            Login::with_token(registry, self.secret.into())
        } else {
            Login::with_password(registry, self.username, self.secret.into())
        }
    }
}

/// Asks a helper for the credentials of a server; `None` if it knows of none.
///
/// # Errors
/// See [`HelperError`].
pub(super) async fn get(
    name: &str,
    server: &str,
    search_path: Option<&str>,
) -> Result<Option<Answer>, HelperError> {
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg("get").kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(path) = search_path {
        command.env("PATH", path);
    }
    let (status, output) = tokio::time::timeout(DEADLINE, converse(command, server))
        .await
        .map_err(|_| HelperError::Deadline)??;
    if !status.success() {
        let knows_none = String::from_utf8_lossy(&output).contains(UNKNOWN);
        return if knows_none { Ok(None) } else { Err(HelperError::Failed(status)) };
    }
    serde_json::from_slice(&output).map(Some).map_err(|_| HelperError::Answer)
}

async fn converse(mut command: Command, server: &str) -> io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(server.as_bytes()).await {
            // One that does not want to know for whom is judged by its answer.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut output = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(LONGEST).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn answer(script: &str) -> Result<Option<Answer>, HelperError> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", directory.path().display());
        get("test", "https://r.example", Some(&path)).await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_server_and_answers_with_a_login() {
        let script = r#"read -r server; printf '{"ServerURL":"%s","Username":"%s","Secret":"s"}' "$server" "$1-$server""#;
        let login = answer(script).await.unwrap().unwrap().login("r.example").header();
        assert_eq!(login.username.as_deref(), Some("get-https://r.example"));
        let token = answer(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap().unwrap();
        assert_eq!(token.login("r.example").header().identitytoken.as_deref(), Some("t"));
    }

    #[tokio::test]
    async fn a_helper_that_knows_nothing_or_fails_is_told_apart() {
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert!(answer(none).await.unwrap().is_none());
        for (script, part) in [
            ("echo hunter2; exit 3", "exit status: 3"),
            ("echo hunter2", "not what helpers answer"),
            ("exec yes hunter2", "signal: 13"),
        ] {
            let error = answer(script).await.err().unwrap().to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
        let absent = get("no-such-helper", "r", Some("/nowhere")).await.err().unwrap();
        assert!(matches!(absent, HelperError::Run(_)), "{absent}");
    }
}
