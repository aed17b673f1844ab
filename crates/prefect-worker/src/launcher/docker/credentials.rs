//! Credentials for registries: of the job, or of the machine's Docker configuration.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use super::config::Credentials;
use super::helper::{self, HelperError};
use super::image;

/// The largest configuration file that is read, in bytes.
const LARGEST: u64 = 1024 * 1024;
/// Where the `docker` program keeps the credentials of the Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What shows a registry who asks.
#[derive(Clone)]
pub(super) struct Login {
    /// The registry that it is for, and nobody else.
    pub(super) registry: String,
    secret: Secret,
}

#[derive(Clone)]
enum Secret {
    Password { username: String, password: SecretString },
    IdentityToken(SecretString),
}

impl Login {
    pub(super) fn with_password(registry: &str, username: String, password: SecretString) -> Self {
        Self { registry: registry.to_owned(), secret: Secret::Password { username, password } }
    }

    pub(super) fn with_token(registry: &str, token: SecretString) -> Self {
        Self { registry: registry.to_owned(), secret: Secret::IdentityToken(token) }
    }

    /// As the engine wants it.
    pub(super) fn header(&self) -> DockerCredentials {
        let serveraddress = Some(self.registry.clone());
        match &self.secret {
            Secret::Password { username, password } => DockerCredentials {
                username: Some(username.clone()),
                password: Some(password.expose_secret().to_owned()),
                serveraddress,
                ..Default::default()
            },
            Secret::IdentityToken(token) => DockerCredentials {
                identitytoken: Some(token.expose_secret().to_owned()),
                serveraddress,
                ..Default::default()
            },
        }
    }
}

impl PartialEq for Login {
    fn eq(&self, other: &Self) -> bool {
        self.header() == other.header()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Why the Docker configuration of the machine gave no credentials. Contents of the file are never shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    #[error("read {}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("understand {}: {field} must be {expected}", path.display())]
    Field { path: PathBuf, field: String, expected: &'static str },
    #[error("ask the credential helper {name}, which {} names: {source}", path.display())]
    Helper { path: PathBuf, name: String, source: HelperError },
}

/// The credentials of this machine's user, in `config.json`.
#[derive(Debug)]
pub(super) struct Keyring {
    file: Option<PathBuf>,
    /// Where helpers are looked for.
    search_path: Option<String>,
}

impl Keyring {
    /// That of `DOCKER_CONFIG`, or of the home directory.
    pub(super) fn from_environment(environment: &dyn Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let directory = variable("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".docker")));
        Self { file: directory.map(|directory| directory.join("config.json")), search_path: variable("PATH") }
    }

    /// Credentials for a registry; `None` if there are none. The file is read each time: logins come and go.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub(super) async fn find(&self, registry: &str) -> Result<Option<Login>, CredentialsError> {
        let Some(path) = &self.file else { return Ok(None) };
        let Some(config) = read(path).await? else { return Ok(None) };
        let file = ConfigFile { path, config: &config };
        if let Some(name) = file.helper(registry)? {
            let server = if registry == image::DOCKER_HUB { HUB_KEY } else { registry };
            let found = helper::get(&name, server, self.search_path.as_deref()).await;
            let found =
                found.map_err(|source| CredentialsError::Helper { path: path.clone(), name, source })?;
            if let Some(found) = found {
                return Ok(Some(found.login(registry)));
            }
        }
        file.entry(registry)
    }
}

/// The credentials for a pull and, where those that were expected are not used, the reason.
pub(super) async fn choose(
    own: Option<&Credentials>,
    keyring: &Keyring,
    image: &str,
) -> (Option<Login>, Option<String>) {
    let registry = image::registry(image);
    let mut warning = None;
    if let Some(own) = own {
        if image::registry_host(&own.registry_url) == registry {
            let mut login = Login::with_password(registry, own.username.clone(), own.password.clone());
            login.registry.clone_from(&own.registry_url);
            return (Some(login), None);
        }
        warning = Some(format!(
            "the registry credentials of this job are for {}, not for {registry}: they are not sent there",
            own.registry_url
        ));
    }
    match keyring.find(registry).await {
        Ok(found) => (found, warning),
        Err(error) => (None, Some(format!("failed to {error}; pulling without credentials"))),
    }
}

async fn read(path: &Path) -> Result<Option<Map<String, Value>>, CredentialsError> {
    let failed = |problem: String| CredentialsError::File { path: path.to_owned(), problem };
    let size = match tokio::fs::metadata(path).await {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    if size > LARGEST {
        return Err(failed(format!("it has {size} bytes; no more than {LARGEST} are read")));
    }
    let bytes = tokio::fs::read(path).await.map_err(|error| failed(error.to_string()))?;
    // serde's own text may quote the contents.
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|error| {
        failed(format!("it is not JSON, line {} column {}", error.line(), error.column()))
    })?;
    match parsed {
        Value::Object(config) => Ok(Some(config)),
        _ => Err(failed("it is not a JSON object".to_owned())),
    }
}

/// A configuration file that was read.
struct ConfigFile<'a> {
    path: &'a Path,
    config: &'a Map<String, Value>,
}

impl ConfigFile<'_> {
    /// The helper that knows the credentials of a registry.
    fn helper(&self, registry: &str) -> Result<Option<String>, CredentialsError> {
        let own = match self.config.get("credHelpers") {
            None | Some(Value::Null) => None,
            Some(Value::Object(helpers)) => find(helpers, registry),
            Some(_) => return Err(self.wrong("credHelpers", "an object")),
        };
        match own.or_else(|| self.config.get("credsStore")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if name.is_empty() => Ok(None),
            Some(Value::String(name)) if is_helper_name(name) => Ok(Some(name.clone())),
            Some(_) => Err(self.wrong(
                "credsStore and the values of credHelpers",
                "the rest of a program's name after docker-credential-: letters, digits, dashes",
            )),
        }
    }

    /// What the file itself says about a registry.
    fn entry(&self, registry: &str) -> Result<Option<Login>, CredentialsError> {
        let auths = match self.config.get("auths") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(auths)) => auths,
            Some(_) => return Err(self.wrong("auths", "an object")),
        };
        let entry = match find(auths, registry) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(entry)) => entry,
            Some(_) => return Err(self.wrong("every value of auths", "an object")),
        };
        let text = |name: &str| match entry.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(_) => Err(self.wrong(&format!("auths.*.{name}"), "text")),
        };
        if let Some(token) = text("identitytoken")? {
            return Ok(Some(Login::with_token(registry, token.into())));
        }
        if let Some(auth) = text("auth")? {
            let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let Some((username, password)) = decoded.as_deref().and_then(|pair| pair.split_once(':')) else {
                return Err(self.wrong("auths.*.auth", "USER:PASSWORD in base64"));
            };
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Login::with_password(registry, username.to_owned(), password.into())));
        }
        match (text("username")?, text("password")?) {
            (Some(username), Some(password)) => {
                Ok(Some(Login::with_password(registry, username, password.into())))
            }
            _ => Ok(None),
        }
    }

    fn wrong(&self, field: &str, expected: &'static str) -> CredentialsError {
        CredentialsError::Field { path: self.path.to_owned(), field: field.to_owned(), expected }
    }
}

/// The value for a registry: the one under its very name, else the first whose key means it.
fn find<'a>(map: &'a Map<String, Value>, registry: &str) -> Option<&'a Value> {
    let meant = || map.iter().find(|(key, _)| image::registry_host(key) == registry).map(|(_, value)| value);
    map.get(registry).or_else(meant)
}

/// Nothing that could name a program elsewhere.
fn is_helper_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keyring(text: &str) -> (tempfile::TempDir, Keyring) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), text).unwrap();
        let path = directory.path().display().to_string();
        let environment = move |name: &str| (name == "DOCKER_CONFIG").then(|| path.clone());
        (directory, Keyring::from_environment(&environment))
    }

    async fn found(config: &Value, registry: &str) -> Option<DockerCredentials> {
        let (_directory, keyring) = keyring(&config.to_string());
        keyring.find(registry).await.unwrap().map(|login| login.header())
    }

    #[tokio::test]
    async fn entries_are_found_under_every_name_of_their_registry() {
        let auth = STANDARD.encode("user:pass:word\0");
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": auth},
            "http://registry.example:5000/v2/": {"username": "u", "password": "p"},
            "ghcr.io": {"identitytoken": "token", "auth": ""},
            "empty.example": {},
        }});
        let hub = found(&config, "docker.io").await.unwrap();
        assert_eq!((hub.username.as_deref(), hub.password.as_deref()), (Some("user"), Some("pass:word")));
        assert_eq!(found(&config, "registry.example:5000").await.unwrap().password.as_deref(), Some("p"));
        assert_eq!(found(&config, "ghcr.io").await.unwrap().identitytoken.as_deref(), Some("token"));
        for none in ["empty.example", "registry.example", "evil.example"] {
            assert_eq!(found(&config, none).await, None, "{none}");
        }
        assert_eq!(found(&json!({}), "ghcr.io").await, None);
    }

    #[tokio::test]
    async fn a_hostile_file_is_named_and_not_quoted() {
        for text in [
            "hunter2",
            "[\"hunter2\"]",
            "{\"auths\": \"hunter2\"}",
            "{\"auths\": {\"r\": \"hunter2\"}}",
            "{\"auths\": {\"r\": {\"auth\": \"hunter2\"}}}",
            "{\"auths\": {\"r\": {\"auth\": {\"hunter2\": 1}}}}",
            "{\"credsStore\": \"../hunter2\"}",
            "{\"credHelpers\": [\"hunter2\"]}",
            "{\"credHelpers\": {\"r\": 2}}",
        ] {
            let (directory, keyring) = keyring(text);
            let error = keyring.find("r").await.unwrap_err().to_string();
            assert!(error.contains(&directory.path().display().to_string()), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let (_directory, large) = keyring(&" ".repeat(1024 * 1024 + 1));
        assert!(large.find("r").await.unwrap_err().to_string().contains("no more than"));
    }

    #[tokio::test]
    async fn credentials_of_the_job_come_first_and_go_to_their_registry_only() {
        let own = Credentials {
            username: "own".to_owned(),
            password: "secret".into(),
            registry_url: "https://ghcr.io".to_owned(),
        };
        let auth = STANDARD.encode("machine:p");
        let config = json!({"auths": {"ghcr.io": {"auth": auth}, "r.example": {"auth": auth}}}).to_string();
        let (_directory, keyring) = keyring(&config);
        let (login, warning) = choose(Some(&own), &keyring, "ghcr.io/a/b:1").await;
        assert_eq!((login.unwrap().header().username.as_deref(), warning), (Some("own"), None));
        let (login, warning) = choose(Some(&own), &keyring, "r.example/a/b:1").await;
        assert_eq!(login.as_ref().unwrap().header().username.as_deref(), Some("machine"));
        assert!(warning.unwrap().contains("not for r.example"));
        assert!(!format!("{login:?}").contains("machine"));
    }
}
