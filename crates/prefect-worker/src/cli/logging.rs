//! The worker's own log.

use std::io::IsTerminal as _;

use prefect_client::Settings;
use prefect_client::settings::{Error, Logging};
use tracing_subscriber::EnvFilter;

/// Diagnostics go to stderr: stdout belongs to the output of the containers.
pub(super) fn start(settings: &Settings) -> Result<(), Error> {
    let logging = Logging::new(settings)?;
    let debug = settings.flag("PREFECT_WORKER_DEBUG_MODE", false)?;
    let level = if debug { "debug" } else { logging.filter() };
    let filter =
        EnvFilter::builder().with_default_directive(tracing::level_filters::LevelFilter::INFO.into());
    let filter = filter.parse_lossy(
        std::env::var("RUST_LOG")
            .unwrap_or_else(|_| format!("warn,prefect_worker={level},prefect_client={level}")),
    );
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal() && logging.colors)
        .with_writer(std::io::stderr)
        .with_env_filter(filter);
    let installed = match settings.choice("PREFECT_WORKER_LOG_FORMAT", Format::Text)? {
        Format::Text => subscriber.try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    };
    if installed.is_err() {
        tracing::debug!("logging was set up before");
    }
    Ok(())
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Lines for people.
    Text,
    /// A JSON object per line, fields at its top.
    Json,
}

impl std::str::FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("it is neither text nor json"),
        }
    }
}
