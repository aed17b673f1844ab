//! Where settings come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::error::Error;
use super::resolved::Inputs;

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A variable of the process.
    Environment,
    /// `.env` in the working directory.
    DotEnv,
    /// `prefect.toml` in the working directory.
    PrefectToml,
    /// The table `tool.prefect` of `pyproject.toml` in the working directory.
    PyprojectToml,
    /// The active profile of `profiles.toml`.
    Profile,
}

type Found = BTreeMap<String, String>;

/// All sources, the strongest first.
pub(super) fn all(inputs: &Inputs) -> Result<Vec<(Source, Found)>, Error> {
    let dot_env = dot_env(&inputs.directory.join(".env"))?;
    let prefect_toml = tables(&inputs.directory.join("prefect.toml"), &[])?;
    let pyproject_toml = tables(&inputs.directory.join("pyproject.toml"), &["tool", "prefect"])?;
    let files = [
        (Source::DotEnv, dot_env),
        (Source::PrefectToml, prefect_toml),
        (Source::PyprojectToml, pyproject_toml),
    ];
    let profile = active_profile(&inputs.environment, files.each_ref().map(|(_, found)| found))?;
    let mut all = vec![(Source::Environment, inputs.environment.clone())];
    all.extend(files);
    all.push((Source::Profile, profile));
    Ok(all)
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

/// A secret that is alone in a file; the line end that editors put there is not part of it.
pub(super) fn secret_file(path: &Path) -> Result<SecretString, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    Ok(SecretString::from(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// `KEY=value` lines, with `export`, comments and quotes. Lines of other programs' keys are left alone.
fn dot_env(path: &Path) -> Result<Found, Error> {
    let text = read_if_present(path)?.unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), bare(value.trim()).to_owned()))
        .collect())
}

/// A value without its quotes, or without the comment behind it.
pub(super) fn bare(value: &str) -> &str {
    let quoted = ['"', '\''].into_iter().find_map(|quote| {
        let inner = value.strip_prefix(quote)?;
        inner.strip_suffix(quote).or_else(|| inner.split_once(quote).map(|(inner, _)| inner))
    });
    quoted.unwrap_or_else(|| value.split_once(" #").map_or(value, |(value, _)| value.trim_end()))
}

/// Below the table `header`, tables are parts of names: `[api] url` is `PREFECT_API_URL`.
fn tables(path: &Path, header: &[&str]) -> Result<Found, Error> {
    let Some(file) = toml_table(path)? else { return Ok(Found::new()) };
    let mut table = Some(&file);
    for key in header {
        table = table.and_then(|table| table.get(*key)).and_then(toml::Value::as_table);
    }
    let mut found = Found::new();
    if let Some(table) = table {
        flatten("PREFECT", table, &mut found);
    }
    Ok(found)
}

fn flatten(prefix: &str, table: &toml::Table, found: &mut Found) {
    for (key, value) in table {
        let name = format!("{prefix}_{}", key.to_uppercase());
        match value {
            // The one setting that is a table itself.
            toml::Value::Table(headers) if name == "PREFECT_CLIENT_CUSTOM_HEADERS" => {
                drop(found.insert(name, serde_json::json!(headers).to_string()));
            }
            toml::Value::Table(inner) => flatten(&name, inner, found),
            value => drop(found.insert(name, text(value))),
        }
    }
}

fn text(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Prefect's directory on this machine: `PREFECT_HOME`, or `.prefect` in the user's.
pub(super) fn home(environment: &Found) -> PathBuf {
    let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let user = || get("HOME").map(PathBuf::from).unwrap_or_default();
    match get("PREFECT_HOME") {
        Some(home) => home.strip_prefix("~/").map_or_else(|| PathBuf::from(home), |below| user().join(below)),
        None => user().join(".prefect"),
    }
}

/// The active profile of the file that the environment, one of `files` or the home directory names.
fn active_profile(environment: &Found, files: [&Found; 3]) -> Result<Found, Error> {
    let set = |found: &Found, name: &str| found.get(name).cloned().filter(|value| !value.is_empty());
    let get = |name: &str| set(environment, name);
    let expand = |path: String| match (path.strip_prefix("~/"), get("HOME")) {
        (Some(below), Some(home)) => Path::new(&home).join(below),
        _ => PathBuf::from(path),
    };
    let named = || files.iter().find_map(|found| set(found, "PREFECT_PROFILES_PATH"));
    let home = || {
        let home = get("PREFECT_HOME").map(expand);
        let home = home.or_else(|| get("HOME").map(|home| Path::new(&home).join(".prefect")))?;
        Some(home.join("profiles.toml"))
    };
    let path = get("PREFECT_PROFILES_PATH").or_else(named).map(expand).or_else(home);
    let Some(path) = path else { return Ok(Found::new()) };
    let Some(table) = toml_table(&path)? else { return Ok(Found::new()) };
    let chosen = get("PREFECT_PROFILE");
    let active = chosen.as_deref().or_else(|| table.get("active").and_then(toml::Value::as_str));
    let Some(active) = active else { return Ok(Found::new()) };
    let profile =
        table.get("profiles").and_then(|profiles| profiles.get(active)).and_then(toml::Value::as_table);
    match profile {
        Some(profile) => Ok(profile.iter().map(|(name, value)| (name.clone(), text(value))).collect()),
        None if chosen.is_some() => Err(Error::Invalid {
            name: "PREFECT_PROFILE".to_owned(),
            problem: format!("there is no profile {active:?} in {}", path.display()),
        }),
        None => Ok(Found::new()),
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
