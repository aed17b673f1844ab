//! Settings of a Prefect client, resolved once: environment, then `.env`, then `prefect.toml`, then the
//! active profile of `profiles.toml`. Python's own order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A variable of the process.
    Environment,
    /// `.env` in the working directory.
    DotEnv,
    /// `prefect.toml` in the working directory.
    PrefectToml,
    /// The active profile of `profiles.toml`.
    Profile,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No API to talk to.
    #[error("find the Prefect API: PREFECT_API_URL is not set")]
    NoApiUrl,
    /// A setting of the wrong form. Its value may be secret and is not shown.
    #[error("use the setting {name}: {problem}")]
    Invalid {
        /// The setting.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A file that cannot be read.
    #[error("read the settings file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what its name says.
    #[error("understand the settings file {}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// What the reader can do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoApiUrl => {
                "set PREFECT_API_URL, for example http://127.0.0.1:4200/api, or choose a profile that has it"
            }
            Self::Invalid { .. } => "correct the variable, or the file that sets it",
            Self::Unreadable { .. } | Self::Malformed { .. } => "correct the file, or move it away",
        }
    }
}

/// The settings that are set, by their names in the environment (`PREFECT_API_URL`).
#[derive(Clone)]
pub struct Settings {
    values: BTreeMap<String, (SecretString, Source)>,
    api_url: Url,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sources = self.values.iter().map(|(name, (_, source))| (name, source));
        f.debug_map().entries(sources).finish()
    }
}

/// What [`Settings::resolve`] reads from: a value, so that tests need no process environment.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Variables of the process.
    pub environment: BTreeMap<String, String>,
    /// The working directory.
    pub directory: PathBuf,
}

impl Settings {
    /// The settings of this process.
    pub fn from_env() -> Result<Self, Error> {
        Self::resolve(&Inputs {
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            directory: PathBuf::from("."),
        })
    }

    /// The settings of these inputs.
    pub fn resolve(inputs: &Inputs) -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        let mut add = |found: BTreeMap<String, String>, source| {
            for (name, value) in found {
                if name.starts_with("PREFECT_") && !value.is_empty() {
                    values.entry(name).or_insert((SecretString::from(value), source));
                }
            }
        };
        add(inputs.environment.clone(), Source::Environment);
        add(dot_env(&inputs.directory.join(".env"))?, Source::DotEnv);
        add(prefect_toml(&inputs.directory.join("prefect.toml"))?, Source::PrefectToml);
        add(active_profile(&inputs.environment)?, Source::Profile);
        let api_url = values.get("PREFECT_API_URL").ok_or(Error::NoApiUrl)?.0.expose_secret();
        let api_url = parse_api_url(api_url)?;
        Ok(Self { values, api_url })
    }

    /// The root of the API, for example `http://127.0.0.1:4200/api`.
    pub fn api_url(&self) -> &Url {
        &self.api_url
    }

    /// The value of a setting that is not secret.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(value, _)| value.expose_secret())
    }

    /// The value of a secret setting.
    pub fn secret(&self, name: &str) -> Option<SecretString> {
        self.values.get(name).map(|(value, _)| value.clone())
    }

    /// Where a setting came from.
    pub fn source(&self, name: &str) -> Option<Source> {
        self.values.get(name).map(|&(_, source)| source)
    }

    /// A setting that is a number, or `default`.
    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, Error> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.trim().parse().map_err(|_| Error::Invalid {
            name: name.to_owned(),
            problem: format!("{text:?} is not a number"),
        })
    }

    /// A setting that is on or off, or `default`.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Error> {
        let Some(text) = self.get(name) else { return Ok(default) };
        match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
            _ => Err(Error::Invalid {
                name: name.to_owned(),
                problem: format!("{text:?} is not true or false"),
            }),
        }
    }

    /// What a worker hands to the containers that it starts: every setting that is set, but for those of the
    /// worker itself, of the server, and of this machine's profiles.
    pub fn api_environment(&self) -> BTreeMap<String, String> {
        const OWN: [&str; 6] = [
            "PREFECT_WORKER_",
            "PREFECT_SERVER_",
            // The older names of the server's settings of its database, password included.
            "PREFECT_API_DATABASE_",
            "PREFECT_HOME",
            "PREFECT_PROFILE",
            "PREFECT__",
        ];
        self.values
            .iter()
            .filter(|(name, _)| !OWN.iter().any(|own| name.starts_with(own)))
            .map(|(name, (value, _))| (name.clone(), value.expose_secret().to_owned()))
            .collect()
    }
}

fn parse_api_url(text: &str) -> Result<Url, Error> {
    let invalid =
        |problem: &str| Error::Invalid { name: "PREFECT_API_URL".to_owned(), problem: problem.to_owned() };
    let mut url = Url::parse(text.trim()).map_err(|e| invalid(&format!("it is not a URL ({e})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(invalid("it must begin with http:// or https:// and name a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("it must not hold credentials; use PREFECT_API_AUTH_STRING or PREFECT_API_KEY"));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

fn read_if_present(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(source) => Err(Error::Unreadable { path: path.to_owned(), source }),
    }
}

/// `KEY=value` lines, with `export`, comments and quotes. Lines of other programs' keys are left alone.
fn dot_env(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let text = read_if_present(path)?.unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), bare(value.trim()).to_owned()))
        .collect())
}

/// A value without its quotes, or without the comment behind it.
fn bare(value: &str) -> &str {
    let quoted = ['"', '\''].into_iter().find_map(|quote| {
        let inner = value.strip_prefix(quote)?;
        inner.strip_suffix(quote).or_else(|| inner.split_once(quote).map(|(inner, _)| inner))
    });
    quoted.unwrap_or_else(|| value.split_once(" #").map_or(value, |(value, _)| value.trim_end()))
}

/// Tables of `prefect.toml` are parts of names: `[api] url` is `PREFECT_API_URL`.
fn prefect_toml(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let Some(table) = toml_table(path)? else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::new();
    flatten("PREFECT", &table, &mut found);
    Ok(found)
}

fn flatten(prefix: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let name = format!("{prefix}_{}", key.to_uppercase());
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, found),
            toml::Value::String(text) => drop(found.insert(name, text.clone())),
            other => drop(found.insert(name, other.to_string())),
        }
    }
}

fn active_profile(environment: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    // Compose files pass `NAME=` for what nobody set.
    let get = |name: &str| environment.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let home = get("PREFECT_HOME")
        .map(PathBuf::from)
        .or_else(|| get("HOME").map(|home| Path::new(home).join(".prefect")));
    let path = get("PREFECT_PROFILES_PATH").map(PathBuf::from);
    let Some(path) = path.or_else(|| home.map(|home| home.join("profiles.toml"))) else {
        return Ok(BTreeMap::new());
    };
    let Some(table) = toml_table(&path)? else { return Ok(BTreeMap::new()) };
    let chosen = get("PREFECT_PROFILE");
    let active = chosen.or_else(|| table.get("active").and_then(toml::Value::as_str));
    let Some(active) = active else { return Ok(BTreeMap::new()) };
    let profile =
        table.get("profiles").and_then(|profiles| profiles.get(active)).and_then(toml::Value::as_table);
    match profile {
        Some(profile) => {
            let text = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Ok(profile.iter().map(|(name, value)| (name.clone(), text(value))).collect())
        }
        None if chosen.is_some() => Err(Error::Invalid {
            name: "PREFECT_PROFILE".to_owned(),
            problem: format!("there is no profile {active:?} in {}", path.display()),
        }),
        None => Ok(BTreeMap::new()),
    }
}

fn toml_table(path: &Path) -> Result<Option<toml::Table>, Error> {
    let Some(text) = read_if_present(path)? else { return Ok(None) };
    // The parser's own display quotes the offending line, which may hold a key.
    text.parse().map(Some).map_err(|error: toml::de::Error| Error::Malformed {
        path: path.to_owned(),
        problem: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(variables: &[(&str, &str)], directory: &Path) -> Inputs {
        Inputs {
            environment: variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect(),
            directory: directory.to_owned(),
        }
    }

    #[test]
    fn the_environment_beats_dot_env_beats_prefect_toml_beats_the_profile() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(".env", "# note\nexport PREFECT_API_KEY='from .env'\nPREFECT_LOGGING_LEVEL=DEBUG\n");
        write("prefect.toml", "[api]\nkey = 'from toml'\n[worker]\nquery_seconds = 3\n");
        write(
            "profiles.toml",
            "active='a'\n[profiles.a]\nPREFECT_API_URL='http://h/api/'\nPREFECT_API_KEY='p'\n",
        );
        let home = dir.path().to_str().unwrap();
        let variables = [("PREFECT_HOME", home), ("PREFECT_LOGGING_LEVEL", "INFO")];
        let settings = Settings::resolve(&inputs(&variables, dir.path())).unwrap();
        assert_eq!(settings.api_url().as_str(), "http://h/api");
        assert_eq!(settings.source("PREFECT_API_URL"), Some(Source::Profile));
        assert_eq!(settings.get("PREFECT_LOGGING_LEVEL"), Some("INFO"));
        assert_eq!(settings.get("PREFECT_API_KEY"), Some("from .env"));
        assert_eq!(settings.number("PREFECT_WORKER_QUERY_SECONDS", 10).unwrap(), 3);
        assert!(!format!("{settings:?}").contains("from .env"));
    }

    #[test]
    fn values_of_dot_env_lose_quotes_and_comments() {
        for (written, meant) in [
            ("INFO", "INFO"),
            ("INFO # not DEBUG", "INFO"),
            ("a#b", "a#b"),
            ("'a # b'", "a # b"),
            ("\"it's\" # quoted", "it's"),
            ("'open", "'open"),
        ] {
            assert_eq!(bare(written), meant, "{written}");
        }
    }

    #[test]
    fn an_empty_variable_chooses_no_profile() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("profiles.toml"),
            "active='a'\n[profiles.a]\nPREFECT_API_URL='http://h/api'",
        )
        .unwrap();
        let home = dir.path().to_str().unwrap();
        let variables = [("PREFECT_HOME", home), ("PREFECT_PROFILE", ""), ("PREFECT_PROFILES_PATH", "")];
        let settings = Settings::resolve(&inputs(&variables, Path::new("/nonexistent"))).unwrap();
        assert_eq!(settings.source("PREFECT_API_URL"), Some(Source::Profile));
    }

    #[test]
    fn unusable_settings_are_named_without_their_values() {
        let none = Path::new("/nonexistent");
        assert!(matches!(Settings::resolve(&inputs(&[], none)), Err(Error::NoApiUrl)));
        for url in ["nonsense", "ftp://h/api", "http://user:hunter2@h/api"] {
            let error =
                Settings::resolve(&inputs(&[("PREFECT_API_URL", url)], none)).unwrap_err().to_string();
            assert!(error.contains("PREFECT_API_URL") && !error.contains("hunter2"), "{error}");
        }
        let lost = [
            ("PREFECT_API_URL", "http://h/api"),
            ("PREFECT_PROFILE", "gone"),
            ("PREFECT_HOME", "/nonexistent"),
        ];
        assert!(
            Settings::resolve(&inputs(&lost, none)).is_ok(),
            "no profiles file, hence nothing to choose from"
        );
    }

    #[test]
    fn containers_get_the_api_but_not_the_workers_own_settings() {
        let given = [
            ("PREFECT_API_URL", "http://h/api"),
            ("PREFECT_API_AUTH_STRING", "u:p"),
            ("PREFECT_HOME", "/nonexistent"),
            ("PREFECT_WORKER_QUERY_SECONDS", "1"),
            ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://u:p@h/prefect"),
            ("PATH", "/bin"),
        ];
        let settings = Settings::resolve(&inputs(&given, Path::new("/nonexistent"))).unwrap();
        let names: Vec<_> = settings.api_environment().into_keys().collect();
        assert_eq!(names, ["PREFECT_API_AUTH_STRING", "PREFECT_API_URL"]);
    }
}
