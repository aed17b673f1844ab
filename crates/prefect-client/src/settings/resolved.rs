//! The settings that are set, and how they are read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::error::Error;
use super::names::{canonical, held_in_file, is_for_containers};
use super::sources::{self, Source};
use crate::proxy::Proxies;

/// The settings that are set, by their names in the environment (`PREFECT_API_URL`).
#[derive(Clone)]
pub struct Settings {
    values: BTreeMap<String, (SecretString, Source)>,
    api_url: Url,
    proxies: Proxies,
    /// Prefect's directory on this machine.
    home: PathBuf,
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
        Self::from_env_and_profile(None)
    }

    /// The settings of this process, with a profile that the command line names.
    pub fn from_env_and_profile(profile: Option<&str>) -> Result<Self, Error> {
        let mut environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        if let Some(profile) = profile {
            environment.insert("PREFECT_PROFILE".to_owned(), profile.to_owned());
        }
        Self::resolve(&Inputs { environment, directory: PathBuf::from(".") })
    }

    /// The settings of these inputs.
    pub fn resolve(inputs: &Inputs) -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        for (source, found) in sources::all(inputs)? {
            let mut named: Vec<_> =
                found.into_iter().filter_map(|(name, value)| Some((canonical(&name)?, value))).collect();
            // Of two names for one setting in one place, today's wins.
            named.sort_by_key(|((_, is_todays), _)| !is_todays);
            for ((name, _), value) in named {
                // Compose files pass `NAME=` for what nobody set.
                if value.is_empty() {
                    continue;
                }
                match held_in_file(&name) {
                    // Sorted after the setting itself: of both in one place that one wins.
                    Some(setting) if !values.contains_key(setting) => {
                        let secret = sources::secret_file(&inputs.directory.join(value))?;
                        values.insert(setting.to_owned(), (secret, source));
                    }
                    Some(_) => {}
                    None => drop(values.entry(name).or_insert((SecretString::from(value), source))),
                }
            }
        }
        let api_url = values.get("PREFECT_API_URL").ok_or(Error::NoApiUrl)?.0.expose_secret();
        let api_url = parse_api_url(api_url)?;
        let proxies = Proxies::of(&inputs.environment, &api_url)?;
        Ok(Self { values, api_url, proxies, home: sources::home(&inputs.environment) })
    }

    /// The directory of results that are kept on this machine: `PREFECT_RESULTS_LOCAL_STORAGE_PATH`, or `storage` in
    /// Prefect's.
    pub fn local_storage(&self) -> PathBuf {
        self.get("PREFECT_RESULTS_LOCAL_STORAGE_PATH")
            .map_or_else(|| self.home.join("storage"), PathBuf::from)
    }

    /// The root of the API, for example `http://127.0.0.1:4200/api`.
    pub fn api_url(&self) -> &Url {
        &self.api_url
    }

    /// The proxies of the environment.
    pub(crate) fn proxies(&self) -> &Proxies {
        &self.proxies
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

    /// A setting that is a number of seconds, fractions included, or `default`. Longer than a year is a year.
    pub fn seconds(&self, name: &str, default: Duration) -> Result<Duration, Error> {
        const LONGEST: f64 = 366.0 * 86_400.0;
        let seconds: f64 = self.number(name, default.as_secs_f64())?;
        // Not `min`, which would take what is not a number for the longest.
        let bounded = if seconds > LONGEST { LONGEST } else { seconds };
        Duration::try_from_secs_f64(bounded).map_err(|error| Error::Invalid {
            name: name.to_owned(),
            problem: format!("{seconds} is no number of seconds: {error}"),
        })
    }

    /// A setting that is one of some words, or `default`.
    pub fn choice<T: FromStr<Err: std::fmt::Display>>(&self, name: &str, default: T) -> Result<T, Error> {
        Ok(self.parsed(name)?.unwrap_or(default))
    }

    /// A setting of a form of its own.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, Error> {
        let invalid =
            |problem: T::Err| Error::Invalid { name: name.to_owned(), problem: problem.to_string() };
        self.get(name).map(|text| text.trim().parse().map_err(invalid)).transpose()
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
        self.values
            .iter()
            .filter(|(name, _)| is_for_containers(name))
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
