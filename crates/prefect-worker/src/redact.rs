//! Keeps secrets out of what is shown: values of an environment that must not appear in logs.

use secrecy::{ExposeSecret as _, SecretString};

/// Parts of names whose values are secrets.
const TELLTALES: [&str; 8] =
    ["SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "AUTH_STRING", "API_KEY", "ACCESS_KEY"];
/// Shorter values are no secrets, and replacing them would make a text unreadable.
const SHORTEST: usize = 4;
const MASK: &str = "********";

/// The values of an environment that are secrets: those under `named` names, and those whose name says so.
pub(crate) fn secrets<'a>(
    environment: impl Iterator<Item = (&'a str, &'a str)>,
    named: &[String],
) -> Vec<SecretString> {
    environment
        .filter(|(name, value)| {
            value.len() >= SHORTEST && (named.iter().any(|n| n == name) || telltale(name))
        })
        .map(|(_, value)| SecretString::from(value.to_owned()))
        .collect()
}

/// The lines of a secret that may have several: output is looked through line by line.
pub(crate) fn lines(secret: &SecretString) -> impl Iterator<Item = SecretString> {
    let lines = secret.expose_secret().lines().map(str::trim).filter(|line| line.len() >= SHORTEST);
    lines.map(|line| SecretString::from(line.to_owned()))
}

/// `text` without the secrets.
pub(crate) fn redact(text: &str, secrets: &[SecretString]) -> String {
    let mut redacted = text.to_owned();
    for secret in secrets {
        if redacted.contains(secret.expose_secret()) {
            redacted = redacted.replace(secret.expose_secret(), MASK);
        }
    }
    redacted
}

fn telltale(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    // The name of a file with a secret in it is none.
    !name.ends_with("_FILE") && TELLTALES.iter().any(|telltale| name.contains(telltale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_under_telltale_or_given_names_are_masked() {
        let environment = [
            ("S3_SECRET_KEY", "hunter22"),
            ("PREFECT_API_AUTH_STRING", "admin:pass"),
            ("DB_URL", "postgres://u:pw@h"),
            ("TOKEN_FILE", "/run/secrets/t"),
            ("PIN_TOKEN", "1"),
        ];
        let secrets = secrets(environment.into_iter(), &["DB_URL".to_owned()]);
        let text = redact("hunter22 admin:pass postgres://u:pw@h /run/secrets/t 1", &secrets);
        assert_eq!(text, "******** ******** ******** /run/secrets/t 1");
    }
}
