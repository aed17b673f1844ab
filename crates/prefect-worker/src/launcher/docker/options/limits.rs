//! Amounts: processors, memory, processes, `ulimit`s.

use bollard::models::ResourcesUlimits;
use serde_json::Value;

use super::super::super::LaunchError;
use super::super::super::fields::{text, wrong};
use super::super::size;
use super::engine_form;

/// Billionths of a processor, of one processor.
const NANO: i64 = 1_000_000_000;
/// More processors than any machine has.
const MOST_CPUS: i64 = 100_000;
/// The kernel's own limits, as `ulimit` of the engine names them.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
/// No limit.
const UNLIMITED: i64 = -1;

/// `1.5` processors.
pub(super) fn nano_cpus(path: &str, value: Value) -> Result<i64, LaunchError> {
    let written = text(path, value)?;
    decimal(written.trim())
        .filter(|nanos| *nanos > 0)
        .ok_or_else(|| wrong(path, "a number of processors such as 1.5", &Value::String(written)))
}

/// A decimal number in billionths, exactly.
fn decimal(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: i64 = whole.parse().ok().filter(|whole| *whole <= MOST_CPUS)?;
    let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(whole * NANO + fraction)
}

/// `64m`: more than nothing.
pub(super) fn bytes(path: &str, value: Value) -> Result<i64, LaunchError> {
    let written = text(path, value)?;
    size::parse(&written)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| wrong(path, "an amount of memory such as 64m or 1g", &Value::String(written)))
}

/// The most processes; 0 and -1 stand for no limit.
pub(super) fn pids(path: &str, value: Value) -> Result<Option<i64>, LaunchError> {
    let written = text(path, value)?;
    match written.trim().parse::<i64>() {
        Ok(0 | UNLIMITED) => Ok(None),
        Ok(limit) if limit > 0 => Ok(Some(limit)),
        _ => Err(wrong(path, "a number of processes", &Value::String(written))),
    }
}

/// `nofile=1024:2048`, `nofile=1024`, or `{"name": …, "soft": …, "hard": …}`; -1 is no limit.
pub(super) fn ulimit(path: &str, value: Value) -> Result<ResourcesUlimits, LaunchError> {
    let form = "a limit such as nofile=1024:2048, with the soft limit not above the hard one";
    let limit = if value.is_object() {
        let names = [("name", "Name"), ("soft", "Soft"), ("hard", "Hard")];
        engine_form::<ResourcesUlimits>(path, value, &names)?
    } else {
        let written = text(path, value)?;
        parse_ulimit(&written).ok_or_else(|| wrong(path, form, &Value::String(written)))?
    };
    let limit =
        ResourcesUlimits { soft: limit.soft.or(limit.hard), hard: limit.hard.or(limit.soft), ..limit };
    let (Some(name), Some(soft), Some(hard)) = (&limit.name, limit.soft, limit.hard) else {
        let message = format!("{path} needs a name and a soft or a hard limit");
        return Err(LaunchError::Configuration { message });
    };
    if !ULIMITS.contains(&name.as_str()) {
        let message = format!("{path} must name one of {}", ULIMITS.join(", "));
        return Err(LaunchError::Configuration { message });
    }
    let within = hard == UNLIMITED || (soft != UNLIMITED && soft <= hard);
    if soft < UNLIMITED || hard < UNLIMITED || !within {
        let message = format!("{path} must be {form}");
        return Err(LaunchError::Configuration { message });
    }
    Ok(limit)
}

fn parse_ulimit(text: &str) -> Option<ResourcesUlimits> {
    let (name, limits) = text.split_once('=')?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let limit = |text: &str| text.trim().parse::<i64>().ok().map(Some);
    Some(ResourcesUlimits { name: Some(name.trim().to_owned()), soft: limit(soft)?, hard: limit(hard)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn processors_are_read_exactly() {
        for (written, nanos) in [
            (json!(1), NANO),
            (json!(1.5), NANO * 3 / 2),
            (json!("0.1"), NANO / 10),
            (json!("0.000000001"), 1),
            (json!("2."), 2 * NANO),
        ] {
            assert_eq!(nano_cpus("cpus", written.clone()).unwrap(), nanos, "{written}");
        }
        for bad in
            [json!(0), json!(-1), json!("1e3"), json!(".5"), json!("1.0000000001"), json!("many"), json!([1])]
        {
            assert!(
                nano_cpus("cpus", bad.clone()).unwrap_err().to_string().contains("cpus must be"),
                "{bad}"
            );
        }
    }

    #[test]
    fn limits_have_names_and_an_order() {
        let both = ulimit("u", json!("nofile=1024:2048")).unwrap();
        assert_eq!(ulimit("u", json!({"name": "nofile", "Soft": 1024, "hard": 2048})).unwrap(), both);
        assert_eq!(ulimit("u", json!("core=-1")).unwrap().soft, Some(-1));
        assert_eq!(ulimit("u", json!({"name": "nproc", "soft": 7})).unwrap().hard, Some(7));
        for bad in [
            json!("nofile"),
            json!("nofile=2:1"),
            json!("nofile=-1:5"),
            json!("nofile=1:x"),
            json!("files=1"),
            json!("=1"),
            json!({"name": "nofile"}),
            json!({"soft": 1, "hard": 2}),
            json!({"name": "nofile", "soft": 1, "most": 2}),
            json!({"name": "nofile", "soft": "1"}),
            json!({"name": "nofile", "soft": 1, "Soft": 2}),
        ] {
            assert!(
                ulimit("ulimits[0]", bad.clone()).unwrap_err().to_string().contains("ulimits[0]"),
                "{bad}"
            );
        }
    }

    #[test]
    fn no_limit_of_processes_is_none() {
        assert_eq!(pids("pids_limit", json!(0)).unwrap(), None);
        assert_eq!(pids("pids_limit", json!("-1")).unwrap(), None);
        assert_eq!(pids("pids_limit", json!(7)).unwrap(), Some(7));
        assert!(pids("pids_limit", json!(-2)).is_err() && pids("pids_limit", json!(1.5)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_meant(whole in 0..MOST_CPUS, fraction in 0..NANO) {
            let meant = whole * NANO + fraction;
            prop_assert_eq!(decimal(&format!("{whole}.{fraction:09}")), Some(meant));
        }

        #[test]
        fn a_limit_reads_back(name in prop::sample::select(&ULIMITS[..]), soft in 0..i64::MAX, more in 0..1000_i64) {
            let hard = soft.saturating_add(more);
            let limit = ulimit("u", json!(format!("{name}={soft}:{hard}"))).unwrap();
            prop_assert_eq!((limit.name.as_deref(), limit.soft, limit.hard), (Some(name), Some(soft), Some(hard)));
        }

        #[test]
        fn no_text_breaks_the_parsers(text in ".{0,40}") {
            for parse in [nano_cpus, bytes] {
                if let Ok(amount) = parse("p", json!(text)) {
                    prop_assert!(amount > 0);
                }
            }
            if let Ok(limit) = ulimit("p", json!(text)) {
                prop_assert!(limit.hard == Some(-1) || limit.soft <= limit.hard);
            }
        }
    }
}
