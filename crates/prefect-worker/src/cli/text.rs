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

/// An amount of bytes in units as Docker writes them: `12.3 MB`.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = 1_u64;
    for name in ["B", "kB", "MB", "GB"] {
        if bytes < unit * 1000 {
            return in_units(bytes, unit, name);
        }
        unit *= 1000;
    }
    in_units(bytes, unit, "TB")
}

fn in_units(bytes: u64, unit: u64, name: &str) -> String {
    let whole = bytes / unit;
    match bytes % unit * 10 / unit {
        0 => format!("{whole} {name}"),
        tenths => format!("{whole}.{tenths} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_written_as_docker_does() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (12_345_678, "12.3 MB"),
            (2_000_000_000, "2 GB"),
            (1_500_000_000_000, "1.5 TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
