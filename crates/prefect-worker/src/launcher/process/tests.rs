//! The job template, and where the state is.

use prefect_api::template::JobTemplate;
use serde_json::{Map, json};

use super::super::Treatment;
use super::*;

#[test]
fn the_default_template_is_prefects_with_the_workers_own_variables() {
    let temporary = tempfile::tempdir().unwrap();
    let launcher = ProcessLauncher::at(temporary.path(), Path::new(supervisor::OWN_EXECUTABLE)).unwrap();
    let template = JobTemplate::parse(&launcher.default_template()).unwrap();
    let mut names: Vec<&str> = template.variable_names().collect();
    names.sort_unstable();
    let expected = "cancellation_grace_seconds command crash_retries crash_retry_delay_seconds env labels \
                    log_container_output name report_exit_state start_timeout_seconds stream_output working_dir";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());

    let configured = template.configure(&Map::new(), &|_| None).unwrap();
    let mut configuration = configured.as_object().unwrap().clone();
    assert_eq!(Treatment::take(&mut configuration).unwrap(), Treatment::default());
    assert_eq!(serde_json::Value::Object(configuration), json!({"stream_output": true}));
}

#[test]
fn the_state_is_where_the_environment_wants_it() {
    let places = [
        ("HOME", "/home/u", "/home/u/.local/state/ferryman/h/processes"),
        ("XDG_STATE_HOME", "/x", "/x/ferryman/h/processes"),
        ("PREFECT_HOME", "/p", "/p/worker/h/processes"),
        (STATE_DIRECTORY, "/s", "/s/processes"),
    ];
    for (count, (_, _, expected)) in places.iter().enumerate() {
        let environment = |name: &str| {
            let known = places.iter().take(count + 1).find(|(variable, ..)| *variable == name);
            known.map(|(_, value, _)| (*value).to_owned())
        };
        assert_eq!(state_directory(&environment, "h").unwrap(), Path::new(expected));
    }
    let error = state_directory(&|_| Some(String::new()), "h").unwrap_err().to_string();
    assert!(error.contains(STATE_DIRECTORY), "{error}");
}
