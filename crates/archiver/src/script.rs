//! The bash script with which a user downloads and unpacks what was retrieved.
//!
//! Works with bash 3.2, curl, and GNU or BSD tar. Names and URLs are data: each is quoted, none is evaluated.
//! Datablocks of one dataset are unpacked into one folder; those of several datasets into a folder per dataset,
//! since their files may have the same names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::RetrievedDatablock;

const HEAD: &str = r#"#!/usr/bin/env bash
# Downloads datablocks and unpacks them. It can be started again after an interruption: downloads are resumed.
# Folders: set DOWNLOAD_FOLDER (default: here) and EXTRACTION_FOLDER (default: DOWNLOAD_FOLDER).
set -euo pipefail

DOWNLOAD_FOLDER="${DOWNLOAD_FOLDER:-.}"
EXTRACTION_FOLDER="${EXTRACTION_FOLDER:-$DOWNLOAD_FOLDER}"

fail() {
  printf 'Error: %s\n' "$1" >&2
  exit 1
}

for folder in "$DOWNLOAD_FOLDER" "$EXTRACTION_FOLDER"; do
  [ -d "$folder" ] || fail "folder '$folder' does not exist"
done
for tool in curl tar; do
  command -v "$tool" >/dev/null || fail "$tool is not installed"
done

# bytes FILE: its size, 0 if it is not there
bytes() {
  if [ -f "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi
}

# datablock NAME SIZE FOLDER URL
datablock() {
  local file="$DOWNLOAD_FOLDER/$1" target="$EXTRACTION_FOLDER/$3"
  if [ "$(bytes "$file")" -gt "$2" ]; then
    fail "$file is larger than the datablock; remove it and start again"
  fi
  if [ "$(bytes "$file")" -lt "$2" ]; then
    printf 'Downloading %s\n' "$1"
    curl --fail --location --show-error --globoff --retry 5 --continue-at - --output "$file" "$4" ||
      fail "$1 was not downloaded; start again, or ask for a new retrieval if the link has expired"
  fi
  [ "$(bytes "$file")" -eq "$2" ] || fail "$file has $(bytes "$file") bytes instead of $2; start again"
  printf 'Unpacking %s\n' "$1"
  mkdir -p "$target"
  tar -xf - -C "$target" <"$file" || fail "$file was not unpacked"
}
"#;

/// The script for these datablocks.
pub fn download_script(datablocks: &[RetrievedDatablock]) -> String {
    let datasets: BTreeSet<_> = datablocks.iter().map(|datablock| &datablock.dataset_id).collect();
    let (mut folders, mut names) = (BTreeSet::new(), BTreeSet::new());
    let folders: BTreeMap<_, _> =
        datasets.iter().map(|id| (*id, unlike_all(&mut folders, &id.flat_name()))).collect();
    let mut script = HEAD.to_owned();
    let mut current = None;
    for datablock in datablocks {
        if current != Some(&datablock.dataset_id) {
            current = Some(&datablock.dataset_id);
            // A dataset id holds no line breaks: it stays within the comment.
            push(&mut script, format_args!("\n# Dataset {}\n", datablock.dataset_id));
        }
        let folder = folders.get(&datablock.dataset_id).filter(|_| datasets.len() > 1);
        push(
            &mut script,
            format_args!(
                "datablock {} {} {} {}\n",
                quote(&unlike_all(&mut names, &datablock.name)),
                datablock.packed_size,
                quote(folder.map_or(".", String::as_str)),
                quote(datablock.url.expose()),
            ),
        );
    }
    script.push_str("\necho 'Downloaded and unpacked all datablocks.'\n");
    script
}

/// The name itself unless it is taken, which datasets such as `a/b` and `a-b` bring about: one file must not be
/// taken for the other.
fn unlike_all(taken: &mut BTreeSet<String>, name: &str) -> String {
    let mut candidates =
        std::iter::once(name.to_owned()).chain((2..).map(|number: usize| format!("{number}-{name}")));
    let free = candidates.find(|candidate| !taken.contains(candidate)).unwrap_or_default();
    taken.insert(free.clone());
    free
}

fn push(script: &mut String, text: std::fmt::Arguments<'_>) {
    let written = script.write_fmt(text);
    debug_assert!(written.is_ok(), "a string takes any text");
}

/// A word that bash reads as exactly `text`.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
