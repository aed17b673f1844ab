//! The worker's own log.

use std::io::IsTerminal as _;

use prefect_client::Settings;
use tracing_subscriber::EnvFilter;

/// Diagnostics go to stderr: stdout belongs to the output of the containers.
pub(super) fn start(settings: &Settings) {
    let level = settings.get("PREFECT_LOGGING_LEVEL").unwrap_or("INFO").to_ascii_lowercase();
    let level = match level.as_str() {
        "warning" => "warn",
        "critical" => "error",
        "notset" => "trace",
        other => other,
    };
    let filter =
        EnvFilter::builder().with_default_directive(tracing::level_filters::LevelFilter::INFO.into());
    let filter = filter.parse_lossy(
        std::env::var("RUST_LOG")
            .unwrap_or_else(|_| format!("warn,prefect_worker={level},prefect_client={level}")),
    );
    let installed = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .try_init();
    if installed.is_err() {
        tracing::debug!("logging was set up before");
    }
}
