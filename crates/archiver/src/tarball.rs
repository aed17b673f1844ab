//! The tar format of datablocks: deterministic bytes whose number is known before the first is written.
//!
//! POSIX ustar with PAX extended headers where a name is long or not ASCII, or a file is larger than the ustar
//! field holds. All members are regular files of mode 0644 owned by 0:0; there are no folder entries; two zero
//! blocks end the archive.

use std::io::{self, Read};

use crate::{Md5Digest, Md5Hasher};

const BLOCK: usize = 512;

/// Ends an archive.
pub(crate) const TRAILER: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Largest size (and time) that eleven octal digits hold.
const MAX_OCTAL: u64 = 0o777_7777_7777;

/// Longest name of a ustar header without prefix, in bytes.
const MAX_NAME: usize = 100;

/// The header blocks of a member: one, or three where PAX records are needed (more for very long names).
/// `mtime` is in seconds since 1970 and does not affect the length.
pub(crate) fn head(path: &str, size: u64, mtime: i64) -> Vec<u8> {
    let mut records = Vec::new();
    if path.len() > MAX_NAME || !path.is_ascii() {
        pax_record(&mut records, "path", path);
    }
    if size > MAX_OCTAL {
        pax_record(&mut records, "size", &size.to_string());
    }
    let mut blocks = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let length = records.len();
        blocks.extend_from_slice(&header("././@PaxHeader", length as u64, 0, tar::EntryType::XHeader));
        blocks.extend_from_slice(&records);
        blocks.resize(BLOCK + padded(length as u64), 0);
    }
    let mtime = u64::try_from(mtime).unwrap_or(0).min(MAX_OCTAL);
    // Readers take name and size from the records; POSIX wants zero in a field that cannot hold its value.
    let field_size = if size > MAX_OCTAL { 0 } else { size };
    blocks.extend_from_slice(&header(path, field_size, mtime, tar::EntryType::Regular));
    blocks
}

/// Zero bytes that follow a member's content.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if used == 0 { &[] } else { TRAILER.get(..BLOCK - used).unwrap_or_default() }
}

/// Size in bytes of the archive of these members (path and size).
pub(crate) fn packed_size<'a>(members: impl Iterator<Item = (&'a str, u64)>) -> u64 {
    let body: u64 = members
        .map(|(path, size)| head(path, size, 0).len() as u64 + size + padding(size).len() as u64)
        .sum();
    body + TRAILER.len() as u64
}

fn header(name: &str, size: u64, mtime: u64, kind: tar::EntryType) -> [u8; BLOCK] {
    let mut header = tar::Header::new_ustar();
    let field = &mut header.as_old_mut().name;
    for (slot, byte) in field.iter_mut().zip(name.bytes()) {
        // Only a hint for people: a PAX record holds the real name whenever this changes it.
        *slot = if byte.is_ascii() { byte } else { b'_' };
    }
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(mtime);
    header.set_entry_type(kind);
    header.set_cksum();
    *header.as_bytes()
}

/// Appends `"{length} {key}={value}\n"`, where the length counts itself.
fn pax_record(records: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() > length {
        length += 1;
    }
    records.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
}

fn padded(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).div_ceil(BLOCK) * BLOCK
}

/// A member read back from an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) md5: Md5Digest,
}

/// Reads an archive to its end and hands each member to `each`, in order. Anything but regular files is an error.
pub(crate) fn read_members<E: From<io::Error>>(
    reader: impl Read,
    mut each: impl FnMut(Member) -> Result<(), E>,
) -> Result<(), E> {
    let mut archive = tar::Archive::new(reader);
    let mut buffer = vec![0; 256 * 1024];
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(io::Error::other("a member is not a regular file").into());
        }
        let path = String::from_utf8(entry.path_bytes().into_owned()).map_err(io::Error::other)?;
        let (mut hasher, mut size) = (Md5Hasher::default(), 0);
        loop {
            let count = entry.read(&mut buffer)?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
            hasher.update(chunk);
            size += count as u64;
        }
        each(Member { path, size, md5: hasher.finish() })?;
    }
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (path, content) in files {
            tar.extend(head(path, content.len() as u64, 1_700_000_000));
            tar.extend_from_slice(content);
            tar.extend_from_slice(padding(content.len() as u64));
        }
        tar.extend_from_slice(&TRAILER);
        tar
    }

    fn members(tar: &[u8]) -> Vec<Member> {
        let mut members = Vec::new();
        read_members(tar, |member| {
            members.push(member);
            Ok::<(), io::Error>(())
        })
        .unwrap();
        members
    }

    #[test]
    fn system_tar_unpacks_names_that_need_extended_headers() {
        let long = format!("{}/{}.bin", "d".repeat(90), "f".repeat(90));
        let files: Vec<(String, Vec<u8>)> =
            ["ünïcödé-Ω.dat", "with spaces in name.txt", "empty.dat", &long, "-dash", &"e".repeat(100)]
                .iter()
                .enumerate()
                .map(|(n, name)| {
                    ((*name).to_owned(), if *name == "empty.dat" { vec![] } else { vec![b'x'; 511 + n] })
                })
                .collect();
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("x.tar");
        std::fs::write(&tar, pack(&files)).unwrap();
        let status = std::process::Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(status.success());
        for (name, content) in &files {
            assert_eq!(&std::fs::read(folder.path().join(name)).unwrap(), content, "{name}");
        }
    }

    #[test]
    fn a_file_beyond_the_octal_field_carries_its_size_in_a_record() {
        let size = 9 * 1024 * 1024 * 1024;
        let blocks = head("big.mrc", size, 0);
        assert_eq!(blocks.len(), 3 * BLOCK);
        let mut archive = tar::Archive::new(blocks.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.size(), size);
        assert_eq!(packed_size([("big.mrc", size)].into_iter()), 3 * 512 + size + 1024);
    }

    #[test]
    fn record_lengths_count_themselves_at_every_digit_boundary() {
        for length in 80..1100 {
            let mut record = Vec::new();
            pax_record(&mut record, "path", &"x".repeat(length));
            let text = String::from_utf8(record).unwrap();
            let (count, _) = text.split_once(' ').unwrap();
            assert_eq!(count.parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn links_and_folders_are_not_members() {
        for kind in [tar::EntryType::Symlink, tar::EntryType::Directory] {
            let mut tar = header("x", 0, 0, kind).to_vec();
            tar.extend_from_slice(&TRAILER);
            assert!(read_members(tar.as_slice(), |_| Ok::<(), io::Error>(())).is_err());
        }
    }

    proptest! {
        #[test]
        fn the_size_is_known_in_advance_and_the_content_comes_back(
            files in prop::collection::vec(("[a-zü/ .]{1,220}", prop::collection::vec(any::<u8>(), 0..2000)), 1..8)
        ) {
            let tar = pack(&files);
            prop_assert_eq!(tar.len() as u64, packed_size(files.iter().map(|(path, content)| (path.as_str(), content.len() as u64))));
            let expected: Vec<_> = files.iter().map(|(path, content)| Member {
                path: path.clone(), size: content.len() as u64, md5: Md5Digest::of(content),
            }).collect();
            prop_assert_eq!(members(&tar), expected);
        }
    }
}
