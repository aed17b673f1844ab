//! How results are written for people.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

/// Adds a line.
pub(super) fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    if text.write_fmt(arguments).is_ok() {
        text.push('\n');
    }
}

/// The time between two moments, to the minute.
pub(super) fn age(now: Timestamp, since: Timestamp) -> String {
    let seconds = now.duration_since(since).max(SignedDuration::ZERO).as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min"),
        _ => format!("{hours} h {minutes} min"),
    }
}
