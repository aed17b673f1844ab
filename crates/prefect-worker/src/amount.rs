//! Amounts of bytes for people.

/// An amount of bytes in units as Docker writes them: `12.3 MB`.
pub(crate) fn size(bytes: u64) -> String {
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
