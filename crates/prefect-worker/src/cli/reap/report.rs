//! What was found, and what became of it.

use jiff::{SignedDuration, Timestamp};
use prefect_api::id::FlowRunId;
use serde::Serialize;

use super::super::text::{age, line};
use super::judge::{Judge, Verdict};
use crate::amount::size;
use crate::launcher::docker::{Leftover, PulledImage, Purpose, Removal};

/// How many characters of an id people read.
const SHORT: usize = 12;

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Failed,
    Removed,
    /// Somebody else removed it meanwhile.
    Gone,
    WouldRemove,
    Kept,
}

impl Outcome {
    fn words(self) -> &'static str {
        match self {
            Self::Failed => "could not remove",
            Self::Removed => "removed",
            Self::Gone => "found gone",
            Self::WouldRemove => "would remove",
            Self::Kept => "keeps",
        }
    }
}

/// What something is.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Kind {
    Container {
        name: String,
        id: String,
        pool: String,
        /// Absent for a companion.
        run: Option<FlowRunId>,
        state: String,
    },
    Image {
        /// By what workers pulled it.
        references: Vec<String>,
        id: String,
    },
}

impl Kind {
    pub(super) fn container(container: &Leftover) -> Self {
        Self::Container {
            name: container.name.clone(),
            id: container.id.chars().take(SHORT).collect(),
            pool: container.pool.clone(),
            run: match container.purpose {
                Purpose::Run { id, .. } => Some(id),
                Purpose::Companion => None,
            },
            state: container.state.clone(),
        }
    }

    pub(super) fn image(image: &PulledImage) -> Self {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        Self::Image {
            references: image.references.iter().cloned().collect(),
            id: id.chars().take(SHORT).collect(),
        }
    }
}

/// Something that was found.
#[derive(Debug, Serialize)]
pub(super) struct Item {
    #[serde(flatten)]
    kind: Kind,
    outcome: Outcome,
    reason: String,
    /// Why it could not be removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(rename = "size_bytes")]
    size: Option<u64>,
    age_seconds: i64,
    #[serde(skip)]
    age: String,
}

impl Item {
    /// Something that is kept so far, as it has been since a moment.
    pub(super) fn new(kind: Kind, size: Option<u64>, now: Timestamp, since: Timestamp) -> Self {
        let age_seconds = now.duration_since(since).max(SignedDuration::ZERO).as_secs();
        Self {
            kind,
            outcome: Outcome::Kept,
            reason: String::new(),
            error: None,
            size,
            age_seconds,
            age: age(now, since),
        }
    }

    /// Takes in what was judged of it; tells whether it may be removed.
    pub(super) fn judged(&mut self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Keep(reason) => {
                self.reason = reason;
                false
            }
            Verdict::Remove(reason) => {
                (self.outcome, self.reason) = (Outcome::WouldRemove, reason);
                true
            }
        }
    }

    /// Takes in what came of its removal.
    pub(super) fn settle(&mut self, removal: Result<Removal, String>) {
        match removal {
            Ok(Removal::Removed) => self.outcome = Outcome::Removed,
            Ok(Removal::Gone) => self.outcome = Outcome::Gone,
            Ok(Removal::Refused(message)) => {
                self.outcome = Outcome::Kept;
                self.reason = format!("the engine refuses: {message}");
            }
            Err(error) => {
                self.outcome = Outcome::Failed;
                self.error = Some(error);
            }
        }
    }

    fn describe(&self, text: &mut String) {
        let words = self.outcome.words();
        let Self { reason, age, .. } = self;
        let size = self.size.map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
        let error = self.error.as_ref().map_or_else(String::new, |error| format!(": failed to {error}"));
        match &self.kind {
            Kind::Container { name, id, pool, run, state } => {
                let run = run.map_or_else(|| "for hooks".to_owned(), |run| format!("run {run}"));
                line(
                    text,
                    format_args!(
                        "{words} container {name:?} {id}, pool {pool:?}, {run}, {state}, {age} old{size}: \
                         {reason}{error}"
                    ),
                );
            }
            Kind::Image { references, id } => {
                let names = references.join(", ");
                line(
                    text,
                    format_args!("{words} image {names} {id}, last used {age} ago{size}: {reason}{error}"),
                );
            }
        }
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    dry_run: bool,
    older_than_seconds: i64,
    items: Vec<Item>,
}

impl Report {
    pub(super) fn new(judge: &Judge, removes: bool) -> Self {
        Self { dry_run: !removes, older_than_seconds: judge.older_than.as_secs(), items: Vec::new() }
    }

    pub(super) fn add(&mut self, item: Item) {
        self.items.push(item);
    }

    pub(super) fn has_failures(&self) -> bool {
        self.items.iter().any(|item| item.outcome == Outcome::Failed)
    }

    /// One JSON document.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// A line for everything, those that people have to act on first, and a summary.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut items: Vec<&Item> = self.items.iter().collect();
        items.sort_by_key(|item| item.outcome);
        for item in items {
            item.describe(&mut text);
        }
        let went = if self.dry_run { Outcome::WouldRemove } else { Outcome::Removed };
        let (went_count, bytes) = self.total(went);
        let (kept, _) = self.total(Outcome::Kept);
        let (failed, _) = self.total(Outcome::Failed);
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        let remedy = if self.dry_run && went_count > 0 { " (nothing is removed without --yes)" } else { "" };
        line(
            &mut text,
            format_args!(
                "{} {went_count} ({}), {} {kept}{failed}{remedy}",
                went.words(),
                size(bytes),
                Outcome::Kept.words()
            ),
        );
        text
    }

    /// How many items of an outcome there are, and their bytes.
    fn total(&self, outcome: Outcome) -> (usize, u64) {
        let items = self.items.iter().filter(|item| item.outcome == outcome);
        items.fold((0, 0), |(count, bytes), item| (count + 1, bytes + item.size.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::launcher::Phase;
    use crate::launcher::docker::Standing;

    fn report(removes: bool) -> Report {
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
        let judge = Judge {
            runs: HashMap::new(),
            pools: BTreeMap::new(),
            named: Vec::new(),
            older_than: SignedDuration::from_hours(24),
            now,
        };
        let mut report = Report::new(&judge, removes);
        for (name, outcome) in [("running", Outcome::Kept), ("ended", Outcome::WouldRemove)] {
            let leftover = Leftover {
                id: "0123456789abcdef".to_owned(),
                name: name.to_owned(),
                pool: "pool".to_owned(),
                purpose: Purpose::Run { id: FlowRunId(Uuid::nil()), pool: None },
                phase: Phase::Ended,
                state: "exited".to_owned(),
                since: now - SignedDuration::from_mins(1505),
                size: Some(12_345),
            };
            let mut item = Item::new(Kind::container(&leftover), leftover.size, now, leftover.since);
            (item.outcome, item.reason) = (outcome, format!("it is {name}"));
            report.add(item);
        }
        report
    }

    #[test]
    fn a_dry_run_reads_well() {
        insta::assert_snapshot!(report(false).text(), @r#"
        would remove container "ended" 0123456789ab, pool "pool", run 00000000-0000-0000-0000-000000000000, exited, 25 h 5 min old, 12.3 kB: it is ended
        keeps container "running" 0123456789ab, pool "pool", run 00000000-0000-0000-0000-000000000000, exited, 25 h 5 min old, 12.3 kB: it is running
        would remove 1 (12.3 kB), keeps 1 (nothing is removed without --yes)
        "#);
    }

    #[test]
    fn images_are_told_by_what_they_were_pulled_by() {
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
        let image = PulledImage {
            id: "sha256:0123456789abcdef".to_owned(),
            references: ["r:1/a:1".to_owned(), "r:1/a:2".to_owned()].into(),
            last_used: now - SignedDuration::from_hours(25),
            standing: Standing::Ours,
            size: Some(1_000_000),
        };
        let mut item = Item::new(Kind::image(&image), image.size, now, image.last_used);
        assert!(item.judged(Verdict::Remove("nothing uses it".to_owned())));
        let mut text = String::new();
        item.describe(&mut text);
        assert_eq!(
            text,
            "would remove image r:1/a:1, r:1/a:2 0123456789ab, last used 25 h 0 min ago, 1 MB: nothing uses it\n"
        );
        assert_eq!(
            serde_json::to_value(&item).unwrap(),
            json!({
                "kind": "image", "references": ["r:1/a:1", "r:1/a:2"], "id": "0123456789ab",
                "outcome": "would_remove", "reason": "nothing uses it", "size_bytes": 1_000_000,
                "age_seconds": 90_000,
            })
        );
    }

    #[test]
    fn refusals_and_failures_are_told() {
        let mut report = report(true);
        report.items[0].settle(Err("reach the engine: gone".to_owned()));
        report.items[1].settle(Ok(Removal::Refused("it runs".to_owned())));
        assert!(report.has_failures());
        insta::assert_snapshot!(report.text(), @r#"
        could not remove container "running" 0123456789ab, pool "pool", run 00000000-0000-0000-0000-000000000000, exited, 25 h 5 min old, 12.3 kB: it is running: failed to reach the engine: gone
        keeps container "ended" 0123456789ab, pool "pool", run 00000000-0000-0000-0000-000000000000, exited, 25 h 5 min old, 12.3 kB: the engine refuses: it runs
        removed 0 (0 B), keeps 1, 1 failed
        "#);
        let mut report = self::report(true);
        report.items[0].settle(Ok(Removal::Removed));
        report.items[1].settle(Ok(Removal::Gone));
        insta::assert_snapshot!(report.text(), @r#"
        removed container "running" 0123456789ab, pool "pool", run 00000000-0000-0000-0000-000000000000, exited, 25 h 5 min old, 12.3 kB: it is running
        found gone container "ended" 0123456789ab, pool "pool", run 00000000-0000-0000-0000-000000000000, exited, 25 h 5 min old, 12.3 kB: it is ended
        removed 1 (12.3 kB), keeps 0
        "#);
    }

    #[test]
    fn the_document_has_every_fact() {
        let document: serde_json::Value = serde_json::from_str(&report(false).json()).unwrap();
        assert_eq!((&document["dry_run"], &document["older_than_seconds"]), (&json!(true), &json!(86_400)));
        assert_eq!(
            document["items"][1],
            json!({
                "kind": "container", "name": "ended", "id": "0123456789ab", "pool": "pool", "run": Uuid::nil(),
                "state": "exited", "outcome": "would_remove", "reason": "it is ended", "size_bytes": 12_345,
                "age_seconds": 90_300,
            })
        );
    }
}
