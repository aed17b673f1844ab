//! The terminal, or the output of a container: log lines, and progress bars that they do not tear.

use std::io::{self, IsTerminal as _};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use prefect_client::settings::Logging;
use tracing_subscriber::fmt::MakeWriter;

/// Where people read. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terminal {
    /// Bars, if there is a terminal to draw them on.
    bars: Option<MultiProgress>,
}

impl Terminal {
    /// Standard error of this process.
    pub(crate) fn standard_error() -> Self {
        Self { bars: io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Log lines of this program to standard error, at `PREFECT_LOGGING_LEVEL`'s or `RUST_LOG`'s level.
    pub(crate) fn install_tracing(&self, logging: &Logging) {
        // Warnings of libraries, our own lines from the run's level on.
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new(format!("warn,prefect_flow={}", logging.filter()))
        });
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(self.bars.is_some() && logging.colors)
            .with_writer(self.clone())
            .finish();
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            tracing::debug!("a tracing subscriber is installed already");
        }
    }

    /// A bar for something in percent; `None` where there is no terminal.
    pub(crate) fn bar(&self, name: &str) -> Option<ProgressBar> {
        let bars = self.bars.as_ref()?;
        let style = ProgressStyle::with_template("{prefix:24!} [{bar:40}] {pos:>3}% {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = bars.add(ProgressBar::new(100)).with_style(style).with_prefix(name.to_owned());
        Some(bar)
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bars: self.bars.clone() }
    }
}

/// One log line on its way out.
#[derive(Debug)]
pub(crate) struct Line {
    bars: Option<MultiProgress>,
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.bars {
            Some(bars) => bars.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
