//! What the worker is told: its settings and its policy.

use prefect_client::Settings;
use prefect_client::settings::Source;

use super::Finding;
use crate::error::{Error, chain};
use crate::options::Options;
use crate::policy::Policy;

/// The settings, without what is secret in them.
pub(super) fn settings(settings: &Settings) -> Vec<Finding> {
    let url = settings.api_url();
    let source = settings.source("PREFECT_API_URL").map_or("nowhere", name);
    let mut findings =
        vec![match Options::new(String::new(), String::new(), settings).map_err(|error| chain(&error)) {
            Ok(_) => Finding::ok("settings", format!("PREFECT_API_URL is {url}, from {source}")),
            Err(error) => Finding::failed(
                "settings",
                format!("failed to {error}"),
                "correct the variable, or the file that sets it",
            ),
        }];
    if matches!(settings.flag("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", false), Ok(true)) {
        findings.push(Finding::warning(
            "settings",
            "PREFECT_API_TLS_INSECURE_SKIP_VERIFY is on: anybody on the way can read the credentials",
            "name the authority in PREFECT_API_SSL_CERT_FILE instead",
        ));
    }
    findings
}

/// The source of the credentials, if there are any.
pub(super) fn credentials(settings: &Settings) -> Option<(&'static str, &'static str)> {
    ["PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"]
        .into_iter()
        .find_map(|setting| settings.source(setting).map(|source| (setting, name(source))))
}

const fn name(source: Source) -> &'static str {
    match source {
        Source::Environment => "the environment",
        Source::DotEnv => ".env",
        Source::PrefectToml => "prefect.toml",
        Source::PyprojectToml => "pyproject.toml",
        Source::Profile => "the active profile",
    }
}

/// The policy, if it can be used.
pub(super) fn policy(read: Result<Option<Policy>, Error>, findings: &mut Vec<Finding>) -> Option<Policy> {
    match read {
        Ok(None) => None,
        Ok(Some(policy)) => {
            findings.push(Finding::ok(
                "policy",
                format!("{} is read; jobs are judged by it", policy.path().display()),
            ));
            Some(policy)
        }
        Err(error) => {
            let remedy = error.hint().unwrap_or("correct the file");
            findings.push(Finding::failed("policy", format!("failed to {}", chain(&error)), remedy));
            None
        }
    }
}
