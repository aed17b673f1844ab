//! What can be set about the engine, from Prefect's settings.

use std::path::PathBuf;
use std::time::Duration;

use prefect_client::Settings;
use prefect_client::settings::{self, Logging};

use crate::block::BlockName;

/// Times and switches of the engine.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How long states and other reports are tried while the server is away:
    /// `PREFECT_FLOW_RUN_REPORT_SECONDS`, 900.
    pub(crate) report_deadline: Duration,
    /// How long a cancelled flow may take to undo its work: `PREFECT_FLOW_RUN_CANCEL_GRACE_SECONDS`, 30.
    pub(crate) cancel_grace: Duration,
    /// The same when the process is asked to end, which leaves less time:
    /// `PREFECT_FLOW_RUN_TERMINATE_GRACE_SECONDS`, 5.
    pub(crate) terminate_grace: Duration,
    /// How long all hooks of a cancelled or crashed run may take together: `PREFECT_FLOW_RUN_HOOK_SECONDS`, 60.
    pub(crate) hook_limit: Duration,
    /// How long code that is dropped may take to hand over its last states, and a second request to end the
    /// process leaves to the first.
    pub(crate) last_words: Duration,
    /// How long the last reports may take at the end: `PREFECT_FLOW_RUN_CLOSE_SECONDS`, 900.
    pub(crate) close_deadline: Duration,
    /// The part of a lease's time after which it is renewed.
    pub(crate) renew_after: f64,
    /// Time between heartbeats: `PREFECT_FLOWS_HEARTBEAT_FREQUENCY`, 180, at least 30.
    pub(crate) heartbeat: Duration,
    /// Whether a run whose process gets SIGTERM goes back to its work pool instead of crashing:
    /// `PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule`.
    pub(crate) reschedule: bool,
    /// Time between looks at the run while no events arrive.
    pub(crate) poll_interval: Duration,
    /// Time between looks at a run of a deployment that is waited for.
    pub(crate) wait_interval: Duration,
    /// How long the server may record nothing of what it was told of task runs before it is told more.
    pub(crate) standstill: Duration,
    /// Where results are kept unless the program says: `PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK`.
    pub(crate) storage_block: Option<BlockName>,
    /// The same if there is no block: `PREFECT_RESULTS_LOCAL_STORAGE_PATH`.
    pub(crate) local_storage: PathBuf,
    /// What is logged and how it is sent: `PREFECT_LOGGING_*`.
    pub(crate) logging: Logging,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            report_deadline: Duration::from_mins(15),
            cancel_grace: Duration::from_secs(30),
            terminate_grace: Duration::from_secs(5),
            hook_limit: Duration::from_mins(1),
            last_words: Duration::from_secs(5),
            close_deadline: Duration::from_mins(15),
            renew_after: 0.75,
            heartbeat: Duration::from_mins(3),
            reschedule: false,
            poll_interval: Duration::from_secs(10),
            wait_interval: Duration::from_secs(5),
            storage_block: None,
            standstill: Duration::from_mins(1),
            local_storage: PathBuf::from(".prefect/storage"),
            logging: Logging::default(),
        }
    }
}

impl Options {
    /// The options that the settings say.
    pub(crate) fn from_settings(settings: &Settings) -> Result<Self, settings::Error> {
        let default = Self::default();
        let seconds = |name: &str, default: Duration| settings.seconds(name, default);
        let heartbeat = seconds("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", default.heartbeat)?;
        Ok(Self {
            report_deadline: seconds("PREFECT_FLOW_RUN_REPORT_SECONDS", default.report_deadline)?,
            cancel_grace: seconds("PREFECT_FLOW_RUN_CANCEL_GRACE_SECONDS", default.cancel_grace)?,
            terminate_grace: seconds("PREFECT_FLOW_RUN_TERMINATE_GRACE_SECONDS", default.terminate_grace)?,
            close_deadline: seconds("PREFECT_FLOW_RUN_CLOSE_SECONDS", default.close_deadline)?,
            hook_limit: seconds("PREFECT_FLOW_RUN_HOOK_SECONDS", default.hook_limit)?,
            last_words: default.last_words,
            renew_after: default.renew_after,
            heartbeat: heartbeat.max(Duration::from_secs(30)),
            reschedule: settings
                .get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR")
                .is_some_and(|behavior| behavior.eq_ignore_ascii_case("reschedule")),
            poll_interval: default.poll_interval,
            wait_interval: default.wait_interval,
            storage_block: settings.parsed("PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK")?,
            standstill: default.standstill,
            local_storage: settings.local_storage(),
            logging: Logging::new(settings)?,
        })
    }
}
