//! What a check found.

use serde::Serialize;

/// How it stands with what was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Well.
    Ok,
    /// It works, and not as it should.
    Warning,
    /// Runs would fail, or none would come.
    Failed,
    /// It could not be looked at.
    NotChecked,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at: `api`, `pool`, `image` …
    pub(crate) check: &'static str,
    /// Which of them, if there may be several.
    pub(crate) subject: Option<String>,
    /// How it stands with it.
    pub(crate) verdict: Verdict,
    /// What was found; one line.
    pub(crate) found: String,
    /// What the reader can do about it.
    pub(crate) remedy: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: &str, remedy: Option<&str>) -> Self {
        Self { check, subject: None, verdict, found: line(found), remedy: remedy.map(line) }
    }

    pub(super) fn ok(check: &'static str, found: impl AsRef<str>) -> Self {
        Self::new(check, Verdict::Ok, found.as_ref(), None)
    }

    pub(super) fn warning(check: &'static str, found: impl AsRef<str>, remedy: impl AsRef<str>) -> Self {
        Self::new(check, Verdict::Warning, found.as_ref(), Some(remedy.as_ref()))
    }

    pub(super) fn failed(check: &'static str, found: impl AsRef<str>, remedy: impl AsRef<str>) -> Self {
        Self::new(check, Verdict::Failed, found.as_ref(), Some(remedy.as_ref()))
    }

    /// `why` nobody looked, and how it can be looked at.
    pub(super) fn unchecked(check: &'static str, why: impl AsRef<str>, how: impl AsRef<str>) -> Self {
        Self::new(check, Verdict::NotChecked, why.as_ref(), Some(how.as_ref()))
    }

    /// Which of them it is about.
    pub(super) fn about(self, subject: &str) -> Self {
        Self { subject: Some(line(subject)), ..self }
    }
}

/// Names and messages of others, without what would move a terminal's cursor.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_on_its_line() {
        let finding = Finding::failed("pool", "a\u{1b}[2Jb\nc", "d\re").about("x\ny");
        assert_eq!((finding.found.as_str(), finding.remedy.as_deref()), ("a [2Jb c", Some("d e")));
        assert_eq!(finding.subject.as_deref(), Some("x y"));
    }
}
