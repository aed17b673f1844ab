//! What the datablocks in the catalogue hold of what lies in the landing zone.
//!
//! A run that dies between two registrations leaves a dataset that looks archived and is not. Nobody but a person
//! can tell what to do about it; this tells the person what there is.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ArchivedFile, ListedObject, Md5Digest};

/// How the files of the registered datablocks relate to those in the landing zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Files in the landing zone that a datablock holds.
    pub(crate) covered: usize,
    /// Paths of files in the landing zone that no datablock holds as they are now.
    pub(crate) uncovered: Vec<String>,
    /// Number of files that a datablock holds and the landing zone does not: archived copies without original.
    pub(crate) only_copies: usize,
}

impl Coverage {
    /// Compares by path, size and, where the tag is one, md5. `prefix` is the landing zone's.
    pub(crate) fn of(archived: &[ArchivedFile], landed: &[ListedObject], prefix: &str) -> Self {
        let archived: BTreeMap<&str, &ArchivedFile> =
            archived.iter().map(|file| (file.path.as_str(), file)).collect();
        let (mut coverage, mut held) = (Self::default(), BTreeSet::new());
        for object in landed {
            let Some(path) = object.key.as_str().strip_prefix(prefix) else { continue };
            if object.is_folder_marker() {
                continue;
            }
            if archived.get(path).is_some_and(|file| is_copy(file, object)) {
                coverage.covered += 1;
                held.insert(path);
            } else {
                coverage.uncovered.push(path.to_owned());
            }
        }
        coverage.only_copies = archived.len() - held.len();
        coverage
    }
}

fn is_copy(file: &ArchivedFile, object: &ListedObject) -> bool {
    let uploaded = object.etag.as_ref().and_then(|etag| etag.as_str().parse::<Md5Digest>().ok());
    let archived = file.md5.as_deref().and_then(|md5| md5.parse::<Md5Digest>().ok());
    // Tags of multipart uploads are not the content's digest: path and size must do.
    let differs = uploaded.zip(archived).is_some_and(|(uploaded, archived)| uploaded != archived);
    file.size == object.size && !differs
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{ETag, ObjectKey};

    fn archived(path: &str, content: &[u8]) -> ArchivedFile {
        let md5 = Some(Md5Digest::of(content).to_string());
        ArchivedFile { path: path.to_owned(), size: content.len() as u64, md5 }
    }

    fn landed(path: &str, content: &[u8], etag: Option<ETag>) -> ListedObject {
        ListedObject {
            key: ObjectKey::new(format!("raw/{path}")),
            size: content.len() as u64,
            etag,
            last_modified: Timestamp::UNIX_EPOCH,
            storage_class: None,
        }
    }

    #[test]
    fn a_file_is_covered_by_a_copy_of_the_same_content_only() {
        let tag = |content: &[u8]| Some(Md5Digest::of(content).to_etag());
        let archive = [archived("same", b"x"), archived("other", b"x"), archived("longer", b"x")];
        let landing = [
            landed("same", b"x", tag(b"x")),
            landed("other", b"y", tag(b"y")),
            landed("longer", b"xx", None),
            landed("new", b"x", tag(b"x")),
            landed("folder/", b"", None),
        ];
        let coverage = Coverage::of(&archive, &landing, "raw/");
        assert_eq!((coverage.covered, coverage.only_copies), (1, 2));
        assert_eq!(coverage.uncovered, ["other", "longer", "new"]);
    }

    #[test]
    fn path_and_size_decide_where_no_digest_is_known() {
        let multipart = ETag::of_parts(&[Md5Digest::of(b"x")]);
        let undigested = ArchivedFile { md5: None, ..archived("b", b"y") };
        let landing = [landed("a", b"x", Some(multipart)), landed("b", b"x", None)];
        let coverage = Coverage::of(&[archived("a", b"y"), undigested], &landing, "raw/");
        assert_eq!(coverage, Coverage { covered: 2, ..Coverage::default() });
    }
}
