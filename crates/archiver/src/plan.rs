//! How files are divided into datablocks: greedily, in key order, so that the same listing always gives the same
//! datablocks.

use std::sync::Arc;

use crate::{DatasetId, ObjectKey, SourceFile, Warning, tarball};

/// Most files in one datablock. The catalogue takes a datablock's file list as one JSON body and stores it as one
/// document, both bounded by 16 MB; 20,000 files took it seconds, 150,000 failed.
pub const MAX_FILES_PER_DATABLOCK: usize = 20_000;

/// Most bytes of a datablock's file list as JSON, by estimate: half the catalogue's limit of 16 MB, since
/// escaping and the ids that the catalogue adds to each file make it grow.
pub const MAX_RECORD_BYTES: usize = 8_000_000;

/// JSON bytes of a file's entry besides its path.
const RECORD_OVERHEAD: usize = 220;

/// What an archiving will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The datablocks, in order.
    pub datablocks: Vec<PlannedDatablock>,
    /// What the user should be told.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Number of files in all datablocks.
    pub fn files(&self) -> usize {
        self.datablocks.iter().map(|datablock| datablock.files.len()).sum()
    }

    /// Unpacked bytes of all datablocks.
    pub fn bytes(&self) -> u64 {
        self.datablocks.iter().map(PlannedDatablock::unpacked_size).sum()
    }
}

/// A datablock to be made; never empty.
#[derive(Clone, Debug)]
pub struct PlannedDatablock {
    index: usize,
    archive_id: ObjectKey,
    files: Arc<[SourceFile]>,
}

impl PlannedDatablock {
    /// Its number within the dataset, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// File name of the tar.
    pub fn name(&self) -> &str {
        self.archive_id.file_name()
    }

    /// Key of the tar in the archive bucket.
    pub fn archive_id(&self) -> &ObjectKey {
        &self.archive_id
    }

    /// Its files, in tar order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    pub(crate) fn shared_files(&self) -> Arc<[SourceFile]> {
        Arc::clone(&self.files)
    }

    /// Sum of the sizes of the files, in bytes.
    pub fn unpacked_size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Exact size of the tar, in bytes.
    pub fn packed_size(&self) -> u64 {
        tarball::packed_size(self.files.iter().map(|file| (file.path.as_str(), file.size)))
    }
}

/// Divides `files` into datablocks of at most `target` unpacked bytes. A file above the target gets a datablock
/// of its own.
pub(crate) fn partition(
    dataset: &DatasetId,
    mut files: Vec<SourceFile>,
    target: u64,
) -> Vec<PlannedDatablock> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut datablocks = Vec::new();
    let mut open: Vec<SourceFile> = Vec::new();
    let (mut size, mut record) = (0_u64, 0_usize);
    for file in files {
        let entry = file.path.as_str().len() + RECORD_OVERHEAD;
        let full = size.saturating_add(file.size) > target
            || record + entry > MAX_RECORD_BYTES
            || open.len() == MAX_FILES_PER_DATABLOCK;
        if full && !open.is_empty() {
            datablocks.push(close(dataset, datablocks.len(), std::mem::take(&mut open)));
            (size, record) = (0, 0);
        }
        size = size.saturating_add(file.size);
        record += entry;
        open.push(file);
    }
    if !open.is_empty() {
        datablocks.push(close(dataset, datablocks.len(), open));
    }
    datablocks
}

fn close(dataset: &DatasetId, index: usize, files: Vec<SourceFile>) -> PlannedDatablock {
    PlannedDatablock { index, archive_id: dataset.tar_key(index), files: files.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::landing::source_file;
    use proptest::prelude::*;

    fn dataset() -> DatasetId {
        "20.500/x".parse().unwrap()
    }

    fn sizes(plan: &[PlannedDatablock]) -> Vec<Vec<u64>> {
        plan.iter().map(|block| block.files().iter().map(|file| file.size).collect()).collect()
    }

    #[test]
    fn a_large_first_file_gets_its_own_datablock_and_none_is_empty() {
        let files = vec![source_file("a", 100), source_file("b", 1), source_file("c", 2)];
        assert_eq!(sizes(&partition(&dataset(), files, 10)), [vec![100], vec![1, 2]]);
    }

    #[test]
    fn a_datablock_may_be_filled_exactly() {
        let files = vec![source_file("a", 4), source_file("b", 6), source_file("c", 0), source_file("d", 1)];
        let plan = partition(&dataset(), files, 10);
        assert_eq!(sizes(&plan), [vec![4, 6, 0], vec![1]]);
        assert_eq!(plan[1].name(), "20.500-x_1.tar");
    }

    #[test]
    fn the_catalogue_record_bounds_the_number_of_files() {
        let files = (0..=MAX_FILES_PER_DATABLOCK).map(|n| source_file(&format!("{n:06}"), 0)).collect();
        let plan = partition(&dataset(), files, 10);
        assert_eq!(
            plan.iter().map(|block| block.files().len()).collect::<Vec<_>>(),
            [MAX_FILES_PER_DATABLOCK, 1]
        );

        let long = "x".repeat(900);
        let files = (0..MAX_FILES_PER_DATABLOCK).map(|n| source_file(&format!("{long}{n:06}"), 0)).collect();
        let plan = partition(&dataset(), files, 10);
        assert!(plan.len() > 1);
        for block in &plan {
            assert!(
                block.files().iter().map(|file| file.path.as_str().len()).sum::<usize>() < MAX_RECORD_BYTES
            );
        }
    }

    proptest! {
        #[test]
        fn every_file_lies_once_in_order_in_a_datablock_that_keeps_the_target(
            sizes in prop::collection::vec(0_u64..50, 0..200),
            target in 1_u64..60,
        ) {
            let files: Vec<_> = sizes.iter().enumerate().map(|(n, size)| source_file(&format!("{n:05}"), *size)).collect();
            let plan = partition(&dataset(), files.clone(), target);
            let packed: Vec<_> = plan.iter().flat_map(|block| block.files().to_vec()).collect();
            prop_assert_eq!(packed, files);
            for (index, block) in plan.iter().enumerate() {
                prop_assert_eq!(block.index(), index);
                prop_assert!(!block.files().is_empty());
                prop_assert!(block.unpacked_size() <= target || block.files().len() == 1);
            }
        }

        #[test]
        fn the_order_of_the_listing_does_not_matter(mut names in prop::collection::vec("[a-c/]{1,6}", 1..40)) {
            names.sort();
            names.dedup();
            let files: Vec<_> = names.iter().enumerate().filter_map(|(n, name)| {
                crate::MemberPath::new(name).ok().map(|_| source_file(name, n as u64))
            }).collect();
            let mut reversed = files.clone();
            reversed.reverse();
            let key = |plan: Vec<PlannedDatablock>| plan.iter().map(|b| b.files().to_vec()).collect::<Vec<_>>();
            prop_assert_eq!(key(partition(&dataset(), files, 9)), key(partition(&dataset(), reversed, 9)));
        }
    }
}
