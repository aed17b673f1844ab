//! What the dataset's owner claims to have uploaded, held against what is there.
//!
//! A claimed file that is absent, of another size or of another checksum is the user's error: archiving it would
//! preserve a fault. A file nobody claimed is archived as well, with a warning: data is never lost for want of a
//! list entry.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Md5Digest, MemberPath, SourceFile};

/// How many discrepancies a message names before it only counts them.
const NAMED: usize = 10;

/// The claimed files of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// The folder the files came from; absolute claims lie below it.
    pub source_folder: Option<String>,
    /// The files.
    pub files: Vec<Claim>,
}

/// One claimed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its path, relative to the dataset or absolute below the source folder.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its md5, as written, where the catalogue has one.
    pub md5: Option<String>,
}

/// Something worth telling the user that does not stop the archiving.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A file was archived that the catalogue does not list.
    Unclaimed {
        /// Which.
        path: MemberPath,
        /// Its size in bytes.
        size: u64,
    },
    /// The catalogue's checksum of a file is not an md5 digest and was not compared.
    UnusableChecksum {
        /// Which.
        path: MemberPath,
    },
    /// An object that only marks a folder was not archived.
    FolderMarker {
        /// Its key.
        key: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclaimed { path, size } => {
                write!(f, "{path} ({size} bytes) is archived although the catalogue does not list it")
            }
            Self::UnusableChecksum { path } => {
                write!(f, "the catalogue's checksum of {path} is not an md5 digest and was not compared")
            }
            Self::FolderMarker { key } => {
                write!(f, "{key} only marks a folder and stays in the landing zone")
            }
        }
    }
}

/// A claim that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discrepancy {
    /// The file is not there.
    Missing {
        /// As claimed.
        path: String,
    },
    /// The file has another size.
    Size {
        /// As claimed.
        path: String,
        /// Bytes as claimed.
        claimed: u64,
        /// Bytes as found.
        found: u64,
    },
    /// The path cannot be one of this dataset's.
    Path {
        /// As claimed.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two claims for the same file contradict each other.
    Contradiction {
        /// As claimed.
        path: String,
    },
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(f, "{path:?} is missing"),
            Self::Size { path, claimed, found } => {
                write!(f, "{path:?} has {found} bytes instead of {claimed}")
            }
            Self::Path { path, reason } => write!(f, "{path:?} is listed but {reason}"),
            Self::Contradiction { path } => {
                write!(f, "{path:?} is listed twice with different sizes or checksums")
            }
        }
    }
}

/// All claims that do not hold; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discrepancies(Vec<Discrepancy>);

impl Discrepancies {
    /// All of them.
    pub fn all(&self) -> &[Discrepancy] {
        &self.0
    }
}

impl fmt::Display for Discrepancies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, discrepancy) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{discrepancy}", if index == 0 { "" } else { "; " })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Holds `claims` against the files found. Gives each file the checksum it is claimed to have.
pub(crate) fn check(
    mut found: Vec<SourceFile>,
    claims: &Claims,
) -> Result<(Vec<SourceFile>, Vec<Warning>), Discrepancies> {
    let mut discrepancies = Vec::new();
    let mut claimed: BTreeMap<MemberPath, &Claim> = BTreeMap::new();
    for claim in &claims.files {
        match relative_path(claim, claims.source_folder.as_deref()) {
            Err(reason) => discrepancies.push(Discrepancy::Path { path: claim.path.clone(), reason }),
            Ok(path) => match claimed.insert(path, claim) {
                Some(other) if other.size != claim.size || other.md5 != claim.md5 => {
                    discrepancies.push(Discrepancy::Contradiction { path: claim.path.clone() });
                }
                _ => {}
            },
        }
    }

    let mut warnings = Vec::new();
    for file in &mut found {
        let Some(claim) = claimed.remove(&file.path) else {
            warnings.push(Warning::Unclaimed { path: file.path.clone(), size: file.size });
            continue;
        };
        if claim.size != file.size {
            let path = claim.path.clone();
            discrepancies.push(Discrepancy::Size { path, claimed: claim.size, found: file.size });
        }
        match claim.md5.as_deref().filter(|text| !text.is_empty()).map(str::parse::<Md5Digest>) {
            Some(Ok(digest)) => file.claimed_md5 = Some(digest),
            Some(Err(_)) => warnings.push(Warning::UnusableChecksum { path: file.path.clone() }),
            None => {}
        }
    }
    discrepancies
        .extend(claimed.into_values().map(|claim| Discrepancy::Missing { path: claim.path.clone() }));

    if discrepancies.is_empty() { Ok((found, warnings)) } else { Err(Discrepancies(discrepancies)) }
}

/// The path of a claim within the dataset.
fn relative_path(claim: &Claim, source_folder: Option<&str>) -> Result<MemberPath, &'static str> {
    let path = claim.path.as_str();
    let relative = if path.starts_with('/') {
        let folder = source_folder.ok_or("it is absolute and the dataset has no source folder")?;
        path.strip_prefix(folder.trim_end_matches('/'))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or("it does not lie below the dataset's source folder")?
    } else {
        path
    };
    // Some clients write "./a" for "a"; the landing zone has "a".
    let relative = relative.trim_start_matches("./");
    MemberPath::new(relative).map_err(|error| error.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::landing::source_file;

    fn claim(path: &str, size: u64, md5: Option<&str>) -> Claim {
        Claim { path: path.to_owned(), size, md5: md5.map(str::to_owned) }
    }

    fn claims(files: Vec<Claim>) -> Claims {
        Claims { source_folder: Some("/data/run 1/".to_owned()), files }
    }

    #[test]
    fn relative_dotted_and_absolute_claims_name_the_same_files() {
        let found = vec![source_file("a", 1), source_file("b/c", 2), source_file("d", 3)];
        let list = vec![claim("a", 1, None), claim("./b/c", 2, None), claim("/data/run 1/d", 3, None)];
        let (files, warnings) = check(found, &claims(list)).unwrap();
        assert_eq!((files.len(), warnings.len()), (3, 0));
    }

    #[test]
    fn a_missing_or_resized_file_stops_the_archiving_and_is_named() {
        let found = vec![source_file("a", 1), source_file("b", 2)];
        let list = vec![claim("a", 1, None), claim("b", 3, None), claim("c", 4, None)];
        let error = check(found, &claims(list)).unwrap_err();
        assert_eq!(error.to_string(), r#""b" has 2 bytes instead of 3; "c" is missing"#);
    }

    #[test]
    fn claims_that_cannot_belong_to_the_dataset_are_refused() {
        for (path, folder) in [
            ("/elsewhere/a", Some("/data")),
            ("/database/a", Some("/data")),
            ("/data/a", None),
            ("../a", Some("/data")),
            ("/data/../a", Some("/data")),
            ("", None),
        ] {
            let claims =
                Claims { source_folder: folder.map(str::to_owned), files: vec![claim(path, 1, None)] };
            let error = check(vec![source_file("a", 1)], &claims).unwrap_err();
            assert!(matches!(error.all(), [Discrepancy::Path { .. }]), "{path}: {error}");
        }
    }

    #[test]
    fn unclaimed_files_are_kept_and_told() {
        let (files, warnings) =
            check(vec![source_file("a", 1), source_file("b", 2)], &claims(vec![claim("a", 1, None)]))
                .unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(warnings, [Warning::Unclaimed { path: MemberPath::new("b").unwrap(), size: 2 }]);
    }

    #[test]
    fn checksums_are_carried_along_or_told_to_be_unusable() {
        let digest = Md5Digest::of(b"x");
        let upper = digest.to_string().to_uppercase();
        let list = vec![claim("a", 1, Some(&upper)), claim("b", 1, Some("sha:1")), claim("c", 1, Some(""))];
        let found = ["a", "b", "c"].map(|path| source_file(path, 1)).to_vec();
        let (files, warnings) = check(found, &claims(list)).unwrap();
        assert_eq!(files[0].claimed_md5, Some(digest));
        assert_eq!(files[1].claimed_md5, None);
        assert_eq!(warnings, [Warning::UnusableChecksum { path: MemberPath::new("b").unwrap() }]);
    }

    #[test]
    fn contradictory_claims_are_refused_and_repeated_ones_are_not() {
        let twice = claims(vec![claim("a", 1, None), claim("./a", 1, None)]);
        assert!(check(vec![source_file("a", 1)], &twice).is_ok());
        let contradiction = claims(vec![claim("a", 1, None), claim("a", 2, None)]);
        let error = check(vec![source_file("a", 2)], &contradiction).unwrap_err();
        assert_eq!(error.all(), [Discrepancy::Contradiction { path: "a".to_owned() }]);
    }

    #[test]
    fn long_lists_are_counted_instead_of_named() {
        let list = (0..25).map(|n| claim(&format!("f{n:02}"), 1, None)).collect();
        let text = check(Vec::new(), &claims(list)).unwrap_err().to_string();
        assert!(
            text.contains("\"f09\"") && !text.contains("\"f10\"") && text.ends_with("and 15 more"),
            "{text}"
        );
    }
}
