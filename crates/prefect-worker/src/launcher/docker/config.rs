//! The Docker part of a job configuration, checked.

use std::fmt;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::super::LaunchError;
use super::super::fields::{Fields, wrong};
use super::image::PullPolicy;
use super::options::Options;
use super::secret_files::SecretFiles;
use super::size;

/// The image of runs whose job configuration names none: the one the Python worker takes.
pub(super) const DEFAULT_IMAGE: &str = "prefecthq/prefect:3.7.2-python3.12";

const DEFAULT_PULL_TIMEOUT: Duration = Duration::from_hours(1);
/// The longest time that a job may give a pull, in seconds: a year.
const LONGEST_PULL: u64 = 366 * 86_400;

/// What a job configuration says about its container.
pub(super) struct DockerConfig {
    pub(super) image: String,
    pub(super) pull_policy: PullPolicy,
    pub(super) credentials: Option<Credentials>,
    /// The longest time that a pull may take; without end if absent.
    pub(super) pull_timeout: Option<Duration>,
    pub(super) networks: Vec<String>,
    pub(super) network_mode: Option<String>,
    pub(super) auto_remove: bool,
    pub(super) volumes: Vec<String>,
    pub(super) memory: Option<i64>,
    pub(super) memory_swap: Option<i64>,
    pub(super) privileged: bool,
    pub(super) create_kwargs: Map<String, Value>,
    /// The options that have variables of their own.
    pub(super) options: Options,
    pub(super) secret_files: SecretFiles,
    /// Keys of the job configuration that mean nothing here.
    pub(super) ignored: Vec<String>,
}

/// Credentials for a registry.
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: SecretString,
    pub(super) registry_url: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("registry_url", &self.registry_url).finish_non_exhaustive()
    }
}

impl DockerConfig {
    pub(super) fn parse(configuration: &Map<String, Value>) -> Result<Self, LaunchError> {
        let mut fields = Fields::new(configuration.clone());
        let image = fields.exact_text("image")?.filter(|image| !image.is_empty());
        let image = image.unwrap_or_else(|| DEFAULT_IMAGE.to_owned());
        let pull_policy = match fields.exact_text("image_pull_policy")? {
            Some(policy) if !policy.is_empty() => PullPolicy::parse(&policy)?,
            _ => PullPolicy::default_for(&image),
        };
        // The worker obeys it; here it only has to have the right form.
        fields.flag("stream_output")?;
        let create_kwargs = fields.object("container_create_kwargs")?.unwrap_or_default();
        let config = Self {
            pull_policy,
            image,
            credentials: fields.object("registry_credentials")?.map(Credentials::parse).transpose()?,
            pull_timeout: pull_timeout(&mut fields)?,
            networks: networks(&mut fields)?,
            network_mode: fields.exact_text("network_mode")?.filter(|mode| !mode.is_empty()),
            auto_remove: fields.flag("auto_remove")?.unwrap_or(false),
            volumes: fields
                .exact_texts("volumes")?
                .into_iter()
                .map(check_volume)
                .collect::<Result<_, _>>()?,
            memory: amount(&mut fields, "mem_limit")?,
            memory_swap: amount(&mut fields, "memswap_limit")?,
            privileged: fields.flag("privileged")?.unwrap_or(false),
            options: Options::take(&mut fields, &create_kwargs)?,
            secret_files: SecretFiles::take(&mut fields)?,
            create_kwargs,
            ignored: Vec::new(),
        };
        Ok(Self { ignored: fields.rest().map(str::to_owned).collect(), ..config })
    }
}

impl Credentials {
    fn parse(object: Map<String, Value>) -> Result<Self, LaunchError> {
        let mut fields = Fields::new(object);
        let mut needed = |name: &str| {
            fields.exact_text(name)?.ok_or_else(|| LaunchError::Configuration {
                message: format!(
                    "registry_credentials needs username, password and registry_url; {name} is missing"
                ),
            })
        };
        Ok(Self {
            username: needed("username")?,
            password: needed("password")?.into(),
            registry_url: needed("registry_url")?,
        })
    }
}

fn networks(fields: &mut Fields) -> Result<Vec<String>, LaunchError> {
    let networks = fields.exact_texts("networks")?;
    match networks.iter().position(String::is_empty) {
        Some(index) => {
            Err(wrong(&format!("networks[{index}]"), "a network's name", &Value::String(String::new())))
        }
        None => Ok(networks),
    }
}

fn pull_timeout(fields: &mut Fields) -> Result<Option<Duration>, LaunchError> {
    Ok(match fields.whole("pull_timeout_seconds", LONGEST_PULL)? {
        None => Some(DEFAULT_PULL_TIMEOUT),
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
    })
}

fn amount(fields: &mut Fields, name: &str) -> Result<Option<i64>, LaunchError> {
    fields.take(name).map(|value| size::of_value(name, &value)).transpose()
}

/// Options of a bind or volume that the engine knows.
const VOLUME_OPTIONS: &[&str] = &[
    "ro",
    "rw",
    "z",
    "Z",
    "nocopy",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "consistent",
    "cached",
    "delegated",
];

/// `/HOST:/CONTAINER[:OPTIONS]`, `VOLUME:/CONTAINER[:OPTIONS]` or, for an anonymous volume, `/CONTAINER`.
fn check_volume(volume: String) -> Result<String, LaunchError> {
    let trimmed = volume.trim();
    let parts: Vec<&str> = trimmed.split(':').collect();
    let path = |path: &str| path.starts_with('/') && path.len() > 1;
    let source = |source: &str| path(source) || !(source.is_empty() || source.contains(['/', '\\']));
    let valid = match parts.as_slice() {
        [container] => path(container),
        [host, container] => source(host) && path(container),
        [host, container, options] => {
            let known = options.split(',').all(|option| VOLUME_OPTIONS.contains(&option));
            source(host) && path(container) && known
        }
        _ => false,
    };
    if valid {
        return Ok(trimmed.to_owned());
    }
    Err(wrong(
        "volumes",
        "a list of /HOST/PATH:/CONTAINER/PATH[:OPTIONS], VOLUME:/CONTAINER/PATH[:OPTIONS] or /CONTAINER/PATH",
        &Value::String(volume),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn parse(value: Value) -> Result<DockerConfig, LaunchError> {
        DockerConfig::parse(value.as_object().unwrap())
    }

    #[test]
    fn an_empty_configuration_is_the_python_workers_default() {
        let config = parse(json!({})).unwrap();
        assert_eq!(config.image, DEFAULT_IMAGE);
        assert_eq!(config.pull_policy, PullPolicy::IfNotPresent);
        assert!(!config.auto_remove && !config.privileged);
    }

    #[test]
    fn values_of_a_wrong_kind_are_named() {
        for (configuration, part) in [
            (json!({"networks": "one"}), "networks must be a list of texts"),
            (json!({"networks": ["one", ""]}), "networks[1] must be a network's name"),
            (json!({"auto_remove": "maybe"}), "auto_remove must be true or false"),
            (json!({"mem_limit": "lots"}), "mem_limit must be an amount"),
            (json!({"volumes": ["relative:path"]}), "volumes must be"),
            (json!({"volumes": ["a/b:/c"]}), "volumes must be"),
            (json!({"volumes": ["/a:/b:sometimes"]}), "volumes must be"),
            (json!({"volumes": ["/a:/b:ro:rw"]}), "volumes must be"),
            (json!({"image": 5}), "image must be text"),
            (json!({"volumes": [["/a"]]}), "volumes[0] must be text"),
            (json!({"registry_credentials": {"username": "u"}}), "password is missing"),
            (json!({"image_pull_policy": "never"}), "image_pull_policy must be"),
        ] {
            let error = parse(configuration).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn passwords_do_not_show() {
        let credentials = json!({"username": "u", "password": "hunter2", "registry_url": "r"});
        let config = parse(json!({"registry_credentials": credentials, "extra": 1})).unwrap();
        assert!(!format!("{:?}", config.credentials).contains("hunter2"));
        assert_eq!(config.ignored, ["extra"]);

        for misplaced in [json!("u:hunter2"), json!({"username": ["hunter2"]})] {
            let error = parse(json!({"registry_credentials": misplaced})).err().unwrap().to_string();
            assert!(error.contains("must be") && !error.contains("hunter2"), "{error}");
        }
    }
}
