//! Listing of keys: prefix, delimiter, pages, and the encoding that keeps odd keys out of the XML.

use std::collections::BTreeMap;
use std::ops::Bound;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What `encoding-type=url` leaves as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Most entries of a page.
const PAGE: usize = 1000;

/// A page of a listing.
#[derive(Debug)]
pub(super) struct Page<'a, T> {
    /// Entries whose keys do not contain the delimiter after the prefix.
    pub entries: Vec<&'a T>,
    /// The other keys, cut after the delimiter.
    pub prefixes: Vec<String>,
    /// The last key or prefix of the page if more follow.
    pub next: Option<String>,
}

/// Selects one page of a sorted map, after `after`.
pub(super) fn page<'a, T>(
    map: &'a BTreeMap<String, T>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&str>,
    max: Option<i32>,
) -> Page<'a, T> {
    let max = max.map_or(PAGE, |max| usize::try_from(max).unwrap_or(0).min(PAGE));
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
    let mut found = Page { entries: Vec::new(), prefixes: Vec::new(), next: None };
    let mut last: Option<String> = None;
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    for (key, value) in map.range::<str, _>((start, Bound::Unbounded)) {
        let Some(rest) = key.strip_prefix(prefix) else { break };
        let common = delimiter.and_then(|delimiter| {
            rest.split_once(delimiter).map(|(head, _)| format!("{prefix}{head}{delimiter}"))
        });
        let is_known = common.as_deref().is_some_and(|common| {
            after.is_some_and(|after| after.starts_with(common)) || last.as_deref() == Some(common)
        });
        if is_known {
            continue;
        }
        if found.entries.len() + found.prefixes.len() >= max {
            found.next = last;
            return found;
        }
        last = Some(common.clone().unwrap_or_else(|| key.clone()));
        match common {
            Some(common) => found.prefixes.push(common),
            None => found.entries.push(value),
        }
    }
    found
}

/// Encodes a key as the client asked for it.
pub(super) fn encoded(text: &str, encoding: Option<&str>) -> String {
    match encoding {
        Some("url") => utf8_percent_encode(text, PLAIN).to_string(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(keys: &[&str]) -> BTreeMap<String, String> {
        keys.iter().map(|key| ((*key).to_owned(), (*key).to_owned())).collect()
    }

    #[test]
    fn pages_join_to_the_whole_listing() {
        let map = map(&["a", "d/1", "d/2", "d/3", "e", "f/1", "z"]);
        for delimiter in [None, Some("/")] {
            let whole = page(&map, "", delimiter, None, None);
            let (mut entries, mut prefixes, mut after) = (Vec::new(), Vec::new(), None);
            loop {
                let part = page(&map, "", delimiter, after.as_deref(), Some(1));
                entries.extend(part.entries);
                prefixes.extend(part.prefixes);
                after = part.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!((entries, prefixes), (whole.entries, whole.prefixes));
        }
        assert_eq!(page(&map, "", Some("/"), None, None).prefixes, ["d/", "f/"]);
    }

    #[test]
    fn a_prefix_ends_where_other_keys_begin() {
        let map = map(&["raw", "raw_files/ü x", "raw_files/y", "raw_filez"]);
        assert_eq!(page(&map, "raw_files/", None, None, None).entries, ["raw_files/y", "raw_files/ü x"]);
        assert_eq!(encoded("raw_files/ü x", Some("url")), "raw_files/%C3%BC%20x");
    }
}
