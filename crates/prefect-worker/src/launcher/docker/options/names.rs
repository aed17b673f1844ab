//! Words: users, signals, paths, addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::super::super::LaunchError;
use super::super::super::fields::{text, text_map, texts, wrong};

/// Text without spaces or control characters.
pub(super) fn word(path: &str, value: Value) -> Result<String, LaunchError> {
    let written = text(path, value)?;
    let word = written.trim();
    if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong(path, "one word", &Value::String(written)));
    }
    Ok(word.to_owned())
}

/// A capability such as `SYS_PTRACE`, in the kernel's letters.
pub(super) fn capability(path: &str, value: Value) -> Result<String, LaunchError> {
    let name = word(path, value)?;
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(wrong(path, "a capability such as SYS_PTRACE", &Value::String(name)));
    }
    Ok(name.to_ascii_uppercase())
}

pub(super) fn absolute_path(path: &str, value: Value) -> Result<String, LaunchError> {
    let written = text(path, value)?;
    if !written.starts_with('/') || written.contains('\0') {
        return Err(wrong(path, "an absolute path", &Value::String(written)));
    }
    Ok(written)
}

pub(super) fn hostname(path: &str, value: Value) -> Result<String, LaunchError> {
    let name = word(path, value)?;
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if name.len() > 63 || !name.split('.').all(part) {
        return Err(wrong(
            path,
            "a host name of at most 63 letters, digits, dashes and dots",
            &Value::String(name),
        ));
    }
    Ok(name)
}

/// `SIGINT`, `INT` or `2`.
pub(super) fn signal(path: &str, value: Value) -> Result<String, LaunchError> {
    let name = word(path, value)?.to_ascii_uppercase();
    let number = name.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    let named = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-".contains(c));
    if !number && !named {
        return Err(wrong(path, "a signal such as SIGINT", &Value::String(name)));
    }
    Ok(name)
}

pub(super) fn address(path: &str, value: Value) -> Result<String, LaunchError> {
    let address = word(path, value)?;
    if address.parse::<IpAddr>().is_err() {
        return Err(wrong(path, "the IP address of a name server", &Value::String(address)));
    }
    Ok(address)
}

/// `["name:address"]` or `{"name": "address"}`; `host-gateway` stands for the host's address.
pub(super) fn extra_hosts(path: &str, value: Value) -> Result<BTreeMap<String, String>, LaunchError> {
    let form = "HOST:ADDRESS entries, with an IP address or host-gateway";
    let hosts = match value {
        Value::Object(_) => text_map(path, value)?,
        Value::String(one) => split_hosts(path, vec![one], form)?,
        value => split_hosts(path, texts(path, value)?, form)?,
    };
    for (host, address) in &hosts {
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || (address != "host-gateway" && address.parse::<IpAddr>().is_err()) {
            return Err(wrong(path, form, &Value::String(String::new())));
        }
    }
    Ok(hosts)
}

fn split_hosts(
    path: &str,
    entries: Vec<String>,
    form: &str,
) -> Result<BTreeMap<String, String>, LaunchError> {
    let mut hosts = BTreeMap::new();
    for entry in entries {
        // The first colon: an IPv6 address has its own.
        let Some((host, address)) = entry.split_once([':', '=']) else {
            return Err(wrong(path, form, &Value::String(entry)));
        };
        hosts.insert(host.trim().to_owned(), address.trim().to_owned());
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn words_of_each_kind_are_told_from_others() {
        type Parser = fn(&str, Value) -> Result<String, LaunchError>;
        let cases: [(Parser, &[&str], &[&str]); 6] = [
            (word, &["1000:1000", "label=disable"], &["", "a b", "a\nb"]),
            (capability, &["SYS_PTRACE", "ALL"], &["SYS-PTRACE", "cap add"]),
            (absolute_path, &["/w", "/a b"], &["w", "", "/a\0"]),
            (hostname, &["probe-1.example"], &["-x", "a..b", "a/b", "", "x_y z"]),
            (signal, &["SIGINT", "TERM", "2", "SIGRTMIN+3"], &["0", "65", "9x", "SIG INT"]),
            (address, &["9.9.9.9", "::1"], &["dns.example", "9.9.9"]),
        ];
        for (parse, good, bad) in cases {
            for text in good {
                assert_eq!(parse("p", json!(text)).unwrap(), *text);
            }
            for text in bad {
                assert!(parse("p", json!(text)).is_err(), "{text:?}");
            }
        }
        assert_eq!(capability("p", json!("sys_ptrace")).unwrap(), "SYS_PTRACE");
        assert_eq!(word("p", json!(1000)).unwrap(), "1000");
        assert!(hostname("p", json!("x".repeat(64))).is_err());
    }

    #[test]
    fn hosts_have_addresses() {
        let hosts = extra_hosts("p", json!(["db:10.0.0.1", "v6:::1", "host:host-gateway"])).unwrap();
        assert_eq!(
            hosts,
            extra_hosts("p", json!({"db": "10.0.0.1", "v6": "::1", "host": "host-gateway"})).unwrap()
        );
        for bad in [json!(["db"]), json!(["db:nowhere"]), json!({"": "1.2.3.4"}), json!([1, []])] {
            assert!(extra_hosts("p", bad.clone()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in ".{0,40}") {
            for parse in [word, capability, absolute_path, hostname, signal, address] {
                if let Ok(read) = parse("p", json!(text)) {
                    prop_assert!(!read.is_empty());
                }
            }
            if let Ok(hosts) = extra_hosts("p", json!([text])) {
                prop_assert_eq!(hosts.len(), 1);
            }
        }
    }
}
