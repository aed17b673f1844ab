//! What the store knows of an object, and the life of a restore.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, ToSpan, Unit, tz::TimeZone};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::Restore;

/// The class of objects that name none.
pub(super) const STANDARD: &str = "STANDARD";

/// Classes that a client may ask for.
const CLASSES: [&str; 8] = [
    STANDARD,
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
];

/// Checks a storage class; absent means [`STANDARD`].
pub(super) fn checked_class(class: Option<&str>) -> S3Result<String> {
    let class = class.unwrap_or(STANDARD);
    if !CLASSES.contains(&class) {
        return Err(s3_error!(InvalidStorageClass, "The storage class {class} is not valid"));
    }
    Ok(class.to_owned())
}

/// A stored run of bytes; an object is one or, after a multipart upload, several of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Segment {
    /// Name of the file among the blobs.
    pub blob: String,
    /// Its length in bytes.
    pub size: u64,
}

/// Headers that an object keeps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Headers {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    pub content_language: Option<String>,
    pub cache_control: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// A stored object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Object {
    pub key: String,
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    pub class: String,
    pub modified: Timestamp,
    pub headers: Headers,
    /// By name of the algorithm, base64.
    pub checksums: BTreeMap<String, String>,
    pub segments: Vec<Segment>,
    /// Whether the segments are the parts of a multipart upload.
    pub multipart: bool,
    pub restoration: Option<Restoration>,
}

/// A restore from an archive class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Restoration {
    /// Not readable yet.
    Ongoing {
        /// What ends it.
        until: Until,
        /// Days that the copy will be kept.
        days: i32,
    },
    /// Readable until then.
    Done { expiry: Timestamp },
}

/// What ends a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Until {
    Heads(u32),
    Time(Timestamp),
    Told,
}

/// What `RestoreObject` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    /// A restore has begun.
    Accepted,
    /// The object was restored before; its copy is kept longer.
    Prolonged,
}

impl Object {
    /// Whether the class needs a restore before reading.
    pub(super) fn is_archived(&self) -> bool {
        matches!(self.class.as_str(), "GLACIER" | "DEEP_ARCHIVE")
    }

    /// Whether the bytes may be read now.
    pub(super) fn is_readable(&mut self, now: Timestamp) -> bool {
        self.advance(now);
        !self.is_archived() || matches!(self.restoration, Some(Restoration::Done { .. }))
    }

    /// Begins a restore, or keeps a restored copy longer.
    pub(super) fn restore(&mut self, days: i32, delay: Restore, now: Timestamp) -> S3Result<Restored> {
        self.advance(now);
        if !self.is_archived() {
            return Err(s3_error!(
                InvalidObjectState,
                "Restore is not allowed for the object's current storage class"
            ));
        }
        match &self.restoration {
            Some(Restoration::Ongoing { .. }) => {
                Err(s3_error!(RestoreAlreadyInProgress, "Object restore is already in progress"))
            }
            Some(Restoration::Done { .. }) => {
                self.restoration = Some(Restoration::Done { expiry: expiry(now, days) });
                Ok(Restored::Prolonged)
            }
            None => {
                let until = match delay {
                    Restore::Heads(heads) => Until::Heads(heads),
                    Restore::After(delay) => {
                        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
                        Until::Time(now.saturating_add(delay).unwrap_or(Timestamp::MAX))
                    }
                    Restore::Held => Until::Told,
                };
                self.restoration = Some(Restoration::Ongoing { until, days });
                self.advance(now);
                Ok(Restored::Accepted)
            }
        }
    }

    /// The value of `x-amz-restore`, as a `HEAD` or `GET` sees it.
    pub(super) fn restore_header(&self) -> Option<String> {
        match &self.restoration {
            None => None,
            Some(Restoration::Ongoing { .. }) => Some("ongoing-request=\"true\"".to_owned()),
            Some(Restoration::Done { expiry }) => {
                let date = expiry.strftime("%a, %d %b %Y %H:%M:%S GMT");
                Some(format!("ongoing-request=\"false\", expiry-date=\"{date}\""))
            }
        }
    }

    /// Counts one `HEAD` that found the restore under way.
    pub(super) fn count_head(&mut self) {
        if let Some(Restoration::Ongoing { until: Until::Heads(left), .. }) = &mut self.restoration {
            *left = left.saturating_sub(1);
        }
    }

    /// Ends a restore that is under way.
    pub(super) fn finish_restore(&mut self, now: Timestamp) {
        if let Some(Restoration::Ongoing { days, .. }) = self.restoration {
            self.restoration = Some(Restoration::Done { expiry: expiry(now, days) });
        }
    }

    /// Takes account of the time that has passed.
    pub(super) fn advance(&mut self, now: Timestamp) {
        match &self.restoration {
            Some(Restoration::Ongoing { until: Until::Heads(0), .. }) => self.finish_restore(now),
            Some(Restoration::Ongoing { until: Until::Time(end), .. }) if *end <= now => {
                self.finish_restore(now);
            }
            Some(Restoration::Done { expiry }) if *expiry <= now => self.restoration = None,
            _ => {}
        }
    }
}

/// The end of a restored copy: so many days on, rounded up to the next midnight UTC.
fn expiry(now: Timestamp, days: i32) -> Timestamp {
    let later = now.to_zoned(TimeZone::UTC).saturating_add(i64::from(days).days());
    let midnight = later.round(jiff::ZonedRound::new().smallest(Unit::Day).mode(jiff::RoundMode::Ceil));
    midnight.map_or(Timestamp::MAX, |midnight| midnight.timestamp())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn archived() -> Object {
        Object {
            key: "a".to_owned(),
            size: 0,
            etag: String::new(),
            class: "GLACIER".to_owned(),
            modified: Timestamp::UNIX_EPOCH,
            headers: Headers::default(),
            checksums: BTreeMap::new(),
            segments: Vec::new(),
            multipart: false,
            restoration: None,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_restore_is_under_way_then_done_then_expired() {
        let (mut object, start) = (archived(), at("2026-01-01T10:00:00Z"));
        assert!(!object.is_readable(start));
        let delay = Restore::After(Duration::from_mins(1));
        assert_eq!(object.restore(7, delay, start).unwrap(), Restored::Accepted);
        assert_eq!(object.restore_header().unwrap(), "ongoing-request=\"true\"");
        let again = object.restore(7, delay, start).unwrap_err();
        assert_eq!(again.code().as_str(), "RestoreAlreadyInProgress");
        assert!(object.is_readable(at("2026-01-01T10:01:00Z")));
        assert_eq!(
            object.restore_header().unwrap(),
            "ongoing-request=\"false\", expiry-date=\"Fri, 09 Jan 2026 00:00:00 GMT\""
        );
        assert_eq!(object.restore(8, delay, at("2026-01-01T10:02:00Z")).unwrap(), Restored::Prolonged);
        assert!(object.is_readable(at("2026-01-09T12:00:00Z")));
        assert!(!object.is_readable(at("2026-01-10T00:00:00Z")));
        assert_eq!(object.restore_header(), None);
    }

    #[test]
    fn heads_count_a_restore_down() {
        let (mut object, now) = (archived(), at("2026-01-01T10:00:00Z"));
        object.restore(1, Restore::Heads(2), now).unwrap();
        for _ in 0..2 {
            object.advance(now);
            assert_eq!(object.restore_header().unwrap(), "ongoing-request=\"true\"");
            object.count_head();
        }
        assert!(object.is_readable(now));
    }

    #[test]
    fn what_is_not_archived_cannot_be_restored() {
        let mut object = Object { class: STANDARD.to_owned(), ..archived() };
        let error = object.restore(1, Restore::Held, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.code().as_str(), "InvalidObjectState");
    }
}
