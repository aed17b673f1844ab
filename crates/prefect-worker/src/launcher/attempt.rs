//! What a worker must remember of a run that it launches. It is stored with the infrastructure, so that the
//! next worker knows it too, and is no secret.

use prefect_api::id::{FlowRunId, WorkPoolId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::LaunchError;
use super::fields::Fields;

/// One attempt to run a flow run: from a claim to the end of its infrastructure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The flow run.
    pub flow_run_id: FlowRunId,
    /// Name of the work pool it comes from.
    pub work_pool: String,
    /// Id of that pool: servers that share an engine may have pools of one name. Nobody takes over what does
    /// not bear it.
    #[serde(default)]
    pub work_pool_id: Option<WorkPoolId>,
    /// Name of the worker that launches it.
    pub worker: String,
    /// Transition ids of the states that the worker proposed: by these it knows its own claim again.
    pub proposals: Vec<Uuid>,
    /// How often the run had entered RUNNING when it was claimed.
    pub run_count: u32,
    /// Names of environment variables whose values came from blocks: they are shown nowhere.
    #[serde(default)]
    pub secret_env: Vec<String>,
    /// How it is to be treated.
    pub treatment: Treatment,
}

impl Attempt {
    /// An attempt without claims, treated as by default.
    pub fn new(flow_run_id: FlowRunId, work_pool: impl Into<String>, worker: impl Into<String>) -> Self {
        Self {
            flow_run_id,
            work_pool: work_pool.into(),
            work_pool_id: None,
            worker: worker.into(),
            proposals: Vec::new(),
            run_count: 0,
            secret_env: Vec::new(),
            treatment: Treatment::default(),
        }
    }
}

/// How the worker treats a run: job variables that it obeys itself, whatever the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Treatment {
    /// The worker reports Running and Completed for a program that does not report itself.
    pub report_exit_state: bool,
    /// Output goes into the run's log.
    pub log_output: bool,
    /// Output goes to the worker's own standard output.
    pub stream_output: bool,
    /// Seconds from the start to the first report of the run; then it counts as stuck.
    pub start_timeout_seconds: Option<u64>,
    /// Seconds within which a cancelled run has ended: two thirds for its own way, the rest for SIGTERM.
    pub cancellation_grace_seconds: u64,
    /// How often a crashed run is started again.
    pub crash_retries: u32,
    /// Seconds before the first such start; doubled each time.
    pub crash_retry_delay_seconds: u64,
}

impl Default for Treatment {
    fn default() -> Self {
        Self {
            report_exit_state: false,
            log_output: false,
            stream_output: true,
            start_timeout_seconds: Some(900),
            cancellation_grace_seconds: 60,
            crash_retries: 0,
            crash_retry_delay_seconds: 10,
        }
    }
}

/// The longest time that a job variable may name, in seconds: a year.
const LONGEST: u64 = 366 * 86_400;
/// More retries than anybody waits for.
const MOST_RETRIES: u64 = 1000;

impl Treatment {
    /// The job variables that it is made of, but for `stream_output`.
    pub(crate) const VARIABLES: [&str; 6] = [
        "report_exit_state",
        "log_container_output",
        "start_timeout_seconds",
        "cancellation_grace_seconds",
        "crash_retries",
        "crash_retry_delay_seconds",
    ];

    /// Takes the worker's own variables out of a job configuration. `stream_output` stays there too.
    ///
    /// # Errors
    /// A value of a wrong form.
    pub(crate) fn take(configuration: &mut Map<String, Value>) -> Result<Self, LaunchError> {
        let default = Self::default();
        let stream_output = Fields::new(configuration.clone()).flag("stream_output")?;
        let mut fields = Fields::new(std::mem::take(configuration));
        let seconds = |fields: &mut Fields, name: &str| fields.whole(name, LONGEST);
        let treatment = Self {
            report_exit_state: fields.flag("report_exit_state")?.unwrap_or(default.report_exit_state),
            log_output: fields.flag("log_container_output")?.unwrap_or(default.log_output),
            stream_output: stream_output.unwrap_or(default.stream_output),
            start_timeout_seconds: match seconds(&mut fields, "start_timeout_seconds")? {
                Some(0) => None,
                given => given.or(default.start_timeout_seconds),
            },
            cancellation_grace_seconds: seconds(&mut fields, "cancellation_grace_seconds")?
                .unwrap_or(default.cancellation_grace_seconds),
            crash_retries: fields
                .whole("crash_retries", MOST_RETRIES)?
                .and_then(|retries| u32::try_from(retries).ok())
                .unwrap_or(default.crash_retries),
            crash_retry_delay_seconds: seconds(&mut fields, "crash_retry_delay_seconds")?
                .unwrap_or(default.crash_retry_delay_seconds),
        };
        *configuration = fields.into_rest();
        Ok(treatment)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn taken(configuration: Value) -> Result<(Treatment, Value), LaunchError> {
        let mut configuration = configuration.as_object().unwrap().clone();
        Treatment::take(&mut configuration).map(|treatment| (treatment, Value::Object(configuration)))
    }

    #[test]
    fn the_workers_own_variables_are_taken_and_the_rest_stays() {
        let given = json!({
            "report_exit_state": true, "log_container_output": "yes", "stream_output": false, "crash_retries": "2",
            "start_timeout_seconds": 0, "cancellation_grace_seconds": 5, "image": "i",
        });
        let (treatment, rest) = taken(given).unwrap();
        assert!(treatment.report_exit_state && treatment.log_output && !treatment.stream_output);
        assert_eq!((treatment.start_timeout_seconds, treatment.cancellation_grace_seconds), (None, 5));
        assert_eq!((treatment.crash_retries, treatment.crash_retry_delay_seconds), (2, 10));
        assert_eq!(rest, json!({"image": "i", "stream_output": false}));
        assert_eq!(taken(json!({"crash_retries": null})).unwrap().0, Treatment::default());
    }

    #[test]
    fn values_of_a_wrong_form_are_named() {
        for (name, value) in [
            ("crash_retries", json!(-1)),
            ("crash_retries", json!(1001)),
            ("start_timeout_seconds", json!("soon")),
            ("cancellation_grace_seconds", json!(1e30)),
            ("report_exit_state", json!([])),
        ] {
            let error = taken(json!({ name: value })).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn an_attempt_survives_its_storage_and_old_ones_can_be_read() {
        let attempt = Attempt::new(FlowRunId::generate(), "pool", "w");
        let stored = serde_json::to_value(&attempt).unwrap();
        assert_eq!(serde_json::from_value::<Attempt>(stored.clone()).unwrap(), attempt);
        let mut old = stored;
        old["treatment"] = json!({"report_exit_state": true, "of_a_later_version": 1});
        assert!(serde_json::from_value::<Attempt>(old).unwrap().treatment.report_exit_state);
    }
}
