//! What a worker is started with.

use std::time::Duration;

use prefect_api::work_pool::BaseJobTemplate;
use prefect_client::Settings;
use prefect_client::settings::Logging;

use crate::compatibility;
use crate::error::Error;

/// How a worker works. [`Options::new`] takes the `PREFECT_WORKER_*` settings; the rest is for the caller.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The worker's name; two processes of one name are one worker to the server. Neither `/` nor `%`.
    pub name: String,
    /// The pool to serve.
    pub pool: String,
    /// The queues to serve; none means all.
    pub queues: Vec<String>,
    /// How early a run is claimed before it is due.
    pub prefetch: Duration,
    /// Time between two polls.
    pub query: Duration,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Time between two looks for cancelled runs, beside the events.
    pub cancellation_poll: Duration,
    /// The most runs at a time.
    pub limit: Option<usize>,
    /// Poll once, wait for what came of it, end.
    pub run_once: bool,
    /// The template of a pool that this worker creates.
    pub base_job_template: Option<BaseJobTemplate>,
    /// Create the pool if there is none.
    pub create_pool: bool,
    /// Compare the version of the server with those that this worker is tested with.
    pub compare_versions: bool,
    /// How lines in the logs of runs are sent.
    pub logging: Logging,
}

impl Options {
    /// The defaults of these settings.
    ///
    /// # Errors
    /// A setting that is not a number.
    pub fn new(pool: String, name: String, settings: &Settings) -> Result<Self, Error> {
        let seconds = |name: &str, default| settings.seconds(name, Duration::from_secs(default));
        Ok(Self {
            name,
            pool,
            queues: Vec::new(),
            prefetch: seconds("PREFECT_WORKER_PREFETCH_SECONDS", 10)?,
            query: seconds("PREFECT_WORKER_QUERY_SECONDS", 10)?.max(Duration::from_millis(10)),
            heartbeat: seconds("PREFECT_WORKER_HEARTBEAT_SECONDS", 30)?.max(Duration::from_secs(1)),
            cancellation_poll: seconds("PREFECT_WORKER_CANCELLATION_POLL_SECONDS", 120)?
                .max(Duration::from_secs(1)),
            limit: None,
            run_once: false,
            base_job_template: None,
            create_pool: true,
            compare_versions: compatibility::check_enabled(settings)?,
            logging: Logging::new(settings)?,
        })
    }
}
