//! The policy file: what it may say.

use std::path::{Path, PathBuf};

use prefect_api::nearest::nearest;
use serde::Deserialize;

use super::binds::{self, Bind};
use super::images::Pattern;
use crate::launcher::docker::{PullPolicy, size};

/// A policy file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// It cannot be read.
    #[error("read the policy file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say what a policy can say.
    #[error("understand the policy file {}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
}

/// What the file says, section by section. What it does not mention is not allowed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sections {
    pub(super) images: Images,
    #[serde(default)]
    pub(super) mounts: Mounts,
    #[serde(default)]
    pub(super) network: Network,
    #[serde(default)]
    pub(super) security: Security,
    #[serde(default)]
    pub(super) devices: Devices,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) logging: Logging,
    #[serde(default)]
    pub(super) host_config: HostConfig,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Images {
    pub(super) allow: Vec<Image>,
    pub(super) pull_policies: Option<Vec<Policy>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Image(pub(super) Pattern);

impl TryFrom<String> for Image {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Pattern::parse(&text)
            .map(Self)
            .map_err(|problem| format!("{text:?} is no pattern of images: {problem}"))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Policy(pub(super) PullPolicy);

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = "IfNotPresent, Always, IfPossible or Never";
        PullPolicy::parse(&text).map(Self).map_err(|_| format!("{text:?} is no pull policy, but {known} are"))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Mounts {
    pub(super) bind: Vec<Bind>,
    pub(super) volumes: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Network {
    pub(super) modes: Vec<String>,
    pub(super) networks: Vec<String>,
    pub(super) publish_ports: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self { modes: texts(&["bridge", "none"]), networks: Vec::new(), publish_ports: false }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, clippy::struct_field_names, reason = "rules, by their names")]
pub(super) struct Security {
    pub(super) privileged: bool,
    pub(super) root: bool,
    pub(super) users: Option<Vec<String>>,
    pub(super) groups: Vec<String>,
    pub(super) cap_add: Vec<String>,
    pub(super) security_opt: Vec<String>,
    pub(super) sysctls: Vec<String>,
    pub(super) pid_modes: Vec<String>,
    pub(super) ipc_modes: Vec<String>,
    pub(super) uts_modes: Vec<String>,
    pub(super) userns_modes: Vec<String>,
    pub(super) cgroupns_modes: Vec<String>,
    pub(super) require_read_only: bool,
    pub(super) require_no_new_privileges: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Devices {
    pub(super) paths: Vec<String>,
    pub(super) gpus: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) memory: Option<Bytes>,
    pub(super) memory_swap: Option<Bytes>,
    pub(super) cpus: Option<f64>,
    pub(super) pids: Option<i64>,
    pub(super) default_memory: Option<Bytes>,
    pub(super) default_cpus: Option<f64>,
    pub(super) default_pids: Option<i64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Bytes(pub(super) i64);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = size::parse(&text).filter(|bytes| *bytes > 0);
        bytes.map(Self).ok_or_else(|| format!("{text:?} is no amount of memory such as 512m or 4g"))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Logging {
    pub(super) drivers: Vec<String>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { drivers: texts(&["json-file", "local", "none"]) }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostConfig {
    pub(super) allow: Vec<String>,
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Sections {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let malformed = |problem: String| PolicyError::Malformed { path: path.to_owned(), problem };
        let mut sections: Self = toml::from_str(text).map_err(|error| malformed(explain(text, &error)))?;
        for bind in &mut sections.mounts.bind {
            let source = binds::plain(&bind.source.to_string_lossy());
            bind.source =
                source.map_err(|problem| malformed(format!("mounts.bind: the source {problem}")))?;
        }
        let limits = &sections.limits;
        let positive = [
            ("limits.cpus", limits.cpus),
            ("limits.default_cpus", limits.default_cpus),
            ("limits.pids", limits.pids.map(as_float)),
            ("limits.default_pids", limits.default_pids.map(as_float)),
        ];
        for (name, value) in positive {
            if value.is_some_and(|value| value.is_nan() || value <= 0.0 || value > 1e9) {
                return Err(malformed(format!("{name} must be a number above 0")));
            }
        }
        Ok(sections)
    }
}

#[expect(clippy::cast_precision_loss, reason = "only its size is looked at")]
const fn as_float(number: i64) -> f64 {
    number as f64
}

/// The parser's message with the line, and for an unknown key the known one that looks most like it.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let line =
        error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    let mut words = message.split('`').skip(1).step_by(2);
    let near = match (message.starts_with("unknown field"), words.next()) {
        (true, Some(unknown)) => nearest(unknown, words).map(|near| format!("; did you mean {near}?")),
        _ => None,
    };
    format!("{place}{message}{}", near.unwrap_or_default())
}
