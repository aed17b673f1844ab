//! Names of settings: today's, and those that Prefect still takes for them.

/// Older names, with today's. Of two names in one place today's wins.
const RENAMED: [(&str, &str); 6] = [
    ("PREFECT_CLIENT_ENABLE_METRICS", "PREFECT_CLIENT_METRICS_ENABLED"),
    ("PREFECT_LOGGING_INTERNAL_LEVEL", "PREFECT_INTERNAL_LOGGING_LEVEL"),
    ("PREFECT_LOGGING_SETTINGS_PATH", "PREFECT_LOGGING_CONFIG_PATH"),
    ("PREFECT_LOCAL_STORAGE_PATH", "PREFECT_RESULTS_LOCAL_STORAGE_PATH"),
    ("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK"),
    ("PREFECT_RUNNER_HEARTBEAT_FREQUENCY", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"),
];

/// Settings that are not for the containers that a worker starts: those of the worker itself, of the server
/// (under older names as well, database passwords among them), and of this machine's profiles.
const NOT_FOR_CONTAINERS: [&str; 10] = [
    "PREFECT_WORKER_",
    "PREFECT_SERVER_",
    "PREFECT_API_DATABASE_",
    "PREFECT_API_SERVICES_",
    "PREFECT_MESSAGING_",
    "PREFECT_SQLALCHEMY_",
    "PREFECT_UI_",
    "PREFECT_HOME",
    "PREFECT_PROFILE",
    "PREFECT__",
];

/// Today's name of a setting, and whether it was called so; `None` if it is none of Prefect's. Case does not
/// matter.
pub(super) fn canonical(name: &str) -> Option<(String, bool)> {
    let name = name.to_ascii_uppercase();
    if !name.starts_with("PREFECT_") {
        return None;
    }
    let renamed = RENAMED.iter().find(|(old, _)| *old == name);
    Some(renamed.map_or((name, true), |&(_, new)| (new.to_owned(), false)))
}

/// Settings whose value may be in a file, under the names that say in which.
const IN_FILES: [(&str, &str); 2] = [
    ("PREFECT_API_AUTH_STRING_FILE", "PREFECT_API_AUTH_STRING"),
    ("PREFECT_API_KEY_FILE", "PREFECT_API_KEY"),
];

/// The setting whose value is in the file that `name` names.
pub(super) fn held_in_file(name: &str) -> Option<&'static str> {
    IN_FILES.iter().find(|(file, _)| *file == name).map(|(_, setting)| *setting)
}

/// Whether containers get this setting.
pub(super) fn is_for_containers(name: &str) -> bool {
    !NOT_FOR_CONTAINERS.iter().any(|own| name.starts_with(own))
}
