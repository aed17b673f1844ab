//! Where settings come from, which wins, and what is wrong with them.

use std::path::Path;
use std::time::Duration;

use super::sources::bare;
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
        let error = Settings::resolve(&inputs(&[("PREFECT_API_URL", url)], none)).unwrap_err().to_string();
        assert!(error.contains("PREFECT_API_URL") && !error.contains("hunter2"), "{error}");
    }
    let lost =
        [("PREFECT_API_URL", "http://h/api"), ("PREFECT_PROFILE", "gone"), ("PREFECT_HOME", "/nonexistent")];
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

#[test]
fn older_names_and_any_case_are_taken_and_todays_name_wins() {
    let url = ("PREFECT_API_URL", "http://h/api");
    let none = Path::new("/nonexistent");
    let resolve = |more: &[(&str, &str)]| Settings::resolve(&inputs(&[&[url], more].concat(), none)).unwrap();
    let old = ("PREFECT_RUNNER_HEARTBEAT_FREQUENCY", "31");
    let new = ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "32");
    assert_eq!(resolve(&[old]).get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY"), Some("31"));
    assert_eq!(resolve(&[old, new]).get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY"), Some("32"));
    assert_eq!(resolve(&[("prefect_api_key", "k")]).get("PREFECT_API_KEY"), Some("k"));
}

#[test]
fn pyproject_comes_after_prefect_toml_and_may_name_the_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let profiles = dir.path().join("elsewhere.toml");
    write("elsewhere.toml", "active='a'\n[profiles.a]\nPREFECT_API_URL='http://h/api'\n");
    write("prefect.toml", "[client]\nmax_retries = 1\nretry_extra_codes = [500, 504]\n");
    write(
        "pyproject.toml",
        &format!(
            "[project]\nname = 'p'\n[tool.prefect]\nprofiles_path = '{}'\n\
             [tool.prefect.client]\nmax_retries = 2\n[tool.prefect.client.custom_headers]\nX-Site = 'a'\n",
            profiles.display()
        ),
    );
    let settings = Settings::resolve(&inputs(&[], dir.path())).unwrap();
    assert_eq!(settings.source("PREFECT_API_URL"), Some(Source::Profile));
    assert_eq!(settings.get("PREFECT_CLIENT_MAX_RETRIES"), Some("1"));
    assert_eq!(settings.get("PREFECT_CLIENT_RETRY_EXTRA_CODES"), Some("[500, 504]"));
    assert_eq!(settings.source("PREFECT_CLIENT_CUSTOM_HEADERS"), Some(Source::PyprojectToml));
    assert_eq!(settings.get("PREFECT_CLIENT_CUSTOM_HEADERS"), Some("{\"X-Site\":\"a\"}"));
}

#[test]
fn seconds_have_fractions_and_an_end() {
    let none = Path::new("/nonexistent");
    let seconds = |value: &str| {
        let given = [("PREFECT_API_URL", "http://h/api"), ("PREFECT_X", value)];
        Settings::resolve(&inputs(&given, none)).unwrap().seconds("PREFECT_X", Duration::from_secs(7))
    };
    assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
    assert_eq!(seconds("").unwrap(), Duration::from_secs(7));
    assert_eq!(seconds("inf").unwrap(), Duration::from_hours(366 * 24));
    for wrong in ["-1", "soon", "nan"] {
        assert!(seconds(wrong).unwrap_err().to_string().contains("PREFECT_X"), "{wrong}");
    }
}

#[test]
fn credentials_may_be_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth");
    std::fs::write(&file, "admin:from a file\n").unwrap();
    let path = file.to_str().unwrap();
    let resolve = |more: &[(&str, &str)]| {
        let mut variables = vec![("PREFECT_API_URL", "http://h/api"), ("PREFECT_HOME", "/nonexistent")];
        variables.extend(more);
        Settings::resolve(&inputs(&variables, dir.path()))
    };
    let settings = resolve(&[("PREFECT_API_AUTH_STRING_FILE", path), ("PREFECT_API_KEY_FILE", "")]).unwrap();
    assert_eq!(settings.get("PREFECT_API_AUTH_STRING"), Some("admin:from a file"));
    assert_eq!(settings.source("PREFECT_API_AUTH_STRING"), Some(Source::Environment));
    let handed_on: Vec<_> = settings.api_environment().into_keys().collect();
    assert_eq!(handed_on, ["PREFECT_API_AUTH_STRING", "PREFECT_API_URL"]);

    let both = [("PREFECT_API_KEY", "k"), ("PREFECT_API_KEY_FILE", "/no/such/file")];
    assert_eq!(resolve(&both).unwrap().get("PREFECT_API_KEY"), Some("k"));
    let error = resolve(&[("PREFECT_API_KEY_FILE", "/no/such/file")]).unwrap_err().to_string();
    assert!(error.contains("/no/such/file"), "{error}");
}
