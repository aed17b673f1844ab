//! `PREFECT_LOGGING_*`: what is logged, and how the lines of runs go to the server.

use std::time::Duration;

use super::{Error, Settings};

/// The settings of logging, for worker and runtime alike.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Logging {
    /// The lowest level that counts, as Prefect numbers them: 10, 20, 30, 40 or 50. `PREFECT_LOGGING_LEVEL`; in
    /// `PREFECT_DEBUG_MODE` 10.
    pub level: u8,
    /// Whether lines go to the server: `PREFECT_LOGGING_TO_API_ENABLED`.
    pub to_api: bool,
    /// Time between batches: `PREFECT_LOGGING_TO_API_BATCH_INTERVAL`.
    pub interval: Duration,
    /// The most text of one batch, in bytes: a quarter of `PREFECT_LOGGING_TO_API_BATCH_SIZE`, since JSON and the
    /// other fields of a line come on top.
    pub batch_bytes: usize,
    /// The longest line, in bytes: `PREFECT_LOGGING_TO_API_MAX_LOG_SIZE`.
    pub line_bytes: usize,
    /// Whether a terminal gets colours: `PREFECT_LOGGING_COLORS`.
    pub colors: bool,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            level: 20,
            to_api: true,
            interval: Duration::from_secs(2),
            batch_bytes: 1_000_000,
            line_bytes: 1_000_000,
            colors: true,
        }
    }
}

impl Logging {
    /// What the settings say.
    ///
    /// # Errors
    /// A setting of the wrong form.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        const BATCH_SIZE: &str = "PREFECT_LOGGING_TO_API_BATCH_SIZE";
        const LINE_SIZE: &str = "PREFECT_LOGGING_TO_API_MAX_LOG_SIZE";
        let default = Self::default();
        let debug = settings.flag("PREFECT_DEBUG_MODE", false)?;
        let (batch, line) =
            (settings.number(BATCH_SIZE, 4_000_000)?, settings.number(LINE_SIZE, default.line_bytes)?);
        if line > batch {
            return Err(Error::Invalid {
                name: LINE_SIZE.to_owned(),
                problem: format!("{line} is more than {batch}, the {BATCH_SIZE}"),
            });
        }
        let interval = settings.seconds("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", default.interval)?;
        Ok(Self {
            level: level(settings, if debug { "DEBUG" } else { "INFO" })?,
            to_api: settings.flag("PREFECT_LOGGING_TO_API_ENABLED", default.to_api)?,
            interval: interval.max(Duration::from_millis(100)),
            // The server takes no larger body.
            batch_bytes: batch.min(4_000_000) / 4,
            line_bytes: line.min(default.line_bytes),
            colors: settings.flag("PREFECT_LOGGING_COLORS", default.colors)?,
        })
    }

    /// Whether a line of this level goes to the server.
    pub fn reports(&self, level: u8) -> bool {
        self.to_api && level >= self.level
    }

    /// A message as the server takes it: without NUL, not too long.
    pub fn clean(&self, mut message: String) -> String {
        const MARK: &str = "... [truncated]";
        if message.contains('\0') {
            message = message.replace('\0', "");
        }
        if message.len() > self.line_bytes {
            message.truncate(message.floor_char_boundary(self.line_bytes.saturating_sub(MARK.len())));
            message.push_str(MARK);
        }
        message
    }

    /// The name of the level in the language of `tracing`.
    pub const fn filter(&self) -> &'static str {
        match self.level {
            ..20 => "debug",
            20..30 => "info",
            30..40 => "warn",
            40.. => "error",
        }
    }
}

fn level(settings: &Settings, default: &str) -> Result<u8, Error> {
    let name = settings.get("PREFECT_LOGGING_LEVEL").unwrap_or(default).trim();
    match name.to_ascii_uppercase().as_str() {
        "NOTSET" | "DEBUG" => Ok(10),
        "INFO" => Ok(20),
        "WARNING" | "WARN" => Ok(30),
        "ERROR" => Ok(40),
        "CRITICAL" => Ok(50),
        _ => Err(Error::Invalid {
            name: "PREFECT_LOGGING_LEVEL".to_owned(),
            problem: format!("{name:?} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Inputs;
    use super::*;

    fn logging(variables: &[(&str, &str)]) -> Result<Logging, Error> {
        let url = [("PREFECT_API_URL", "http://h/api")];
        let environment = url.iter().chain(variables).map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        Logging::new(&Settings::resolve(&Inputs { environment, directory: "/nonexistent".into() })?)
    }

    #[test]
    fn unset_settings_are_the_default_and_set_ones_count() {
        assert_eq!(logging(&[]).unwrap(), Logging::default());
        let set = logging(&[
            ("PREFECT_LOGGING_LEVEL", "warning"),
            ("PREFECT_DEBUG_MODE", "true"),
            ("PREFECT_LOGGING_TO_API_BATCH_SIZE", "4000"),
            ("PREFECT_LOGGING_TO_API_MAX_LOG_SIZE", "40"),
            ("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "0.5"),
        ])
        .unwrap();
        assert_eq!((set.filter(), set.batch_bytes, set.line_bytes), ("warn", 1000, 40));
        assert_eq!(set.interval, Duration::from_millis(500));
        assert!(set.reports(30) && !set.reports(20));
        assert_eq!(logging(&[("PREFECT_DEBUG_MODE", "1")]).unwrap().filter(), "debug");
        assert!(!logging(&[("PREFECT_LOGGING_TO_API_ENABLED", "false")]).unwrap().reports(50));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for wrong in [("PREFECT_LOGGING_LEVEL", "LOUD"), ("PREFECT_LOGGING_TO_API_MAX_LOG_SIZE", "5000000")] {
            assert!(logging(&[wrong]).unwrap_err().to_string().contains(wrong.0));
        }
    }

    #[test]
    fn messages_are_made_acceptable() {
        let logging = Logging::default();
        assert_eq!(logging.clean("a\0b".to_owned()), "ab");
        let long = logging.clean("é".repeat(logging.line_bytes));
        assert!(long.len() <= logging.line_bytes && long.ends_with("[truncated]"));
    }
}
