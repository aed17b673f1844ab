//! What one run has done, so that exactly this can be undone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    Catalogue, Datablock, DatablockId, DatasetId, DeletionPermit, ETag, ObjectAddress, ObjectKey,
    ObjectStore, RegisteredDatablock, UploadId,
};

/// The effects of a run, in order. Effects are entered before they take place: an answer may be lost.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Effects>);

#[derive(Debug, Default)]
struct Effects {
    uploads: Vec<(ObjectAddress, UploadId)>,
    objects: HashMap<ObjectAddress, Written>,
    records: BTreeMap<ObjectKey, Record>,
}

/// A record that this run has registered, or may have.
#[derive(Debug)]
struct Record {
    /// Its id, once the catalogue has told it.
    id: Option<DatablockId>,
    size: u64,
    packed_size: u64,
}

impl Record {
    /// Whether `found`, which has the same archive id, is this record and not that of another run.
    fn is(&self, found: &RegisteredDatablock) -> bool {
        match &self.id {
            Some(id) => *id == found.id,
            None => (self.size, self.packed_size) == (found.size, found.packed_size),
        }
    }
}

/// An object this run has written.
#[derive(Debug)]
struct Written {
    /// The tags it may have if it is this run's.
    tags: Vec<ETag>,
    /// Whether an object had its address before.
    preexisting: bool,
}

/// What [`crate::DatasetRun::undo`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UndoReport {
    /// Multipart uploads aborted.
    pub aborted_uploads: usize,
    /// Datablock records removed from the catalogue.
    pub deleted_records: usize,
    /// Tars removed from the archive.
    pub deleted_objects: usize,
    /// What could not be undone or was left on purpose, in words.
    pub problems: Vec<String>,
}

impl Journal {
    fn effects(&self) -> MutexGuard<'_, Effects> {
        // Every change is a single insertion or removal: a poisoned journal is still true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn upload_opened(&self, address: &ObjectAddress, upload: &UploadId) {
        self.effects().uploads.push((address.clone(), upload.clone()));
    }

    pub(crate) fn upload_closed(&self, upload: &UploadId) {
        self.effects().uploads.retain(|(_, open)| open != upload);
    }

    pub(crate) fn object_written<'a>(
        &self,
        address: &ObjectAddress,
        tags: impl IntoIterator<Item = &'a ETag>,
        preexisting: bool,
    ) {
        let written = Written { tags: tags.into_iter().cloned().collect(), preexisting };
        self.effects().objects.insert(address.clone(), written);
    }

    /// Whether this run has written, or tried to write, the object.
    pub(crate) fn has_written(&self, address: &ObjectAddress) -> bool {
        self.effects().objects.contains_key(address)
    }

    /// A record is about to be registered.
    pub(crate) fn record_begun(&self, record: &Datablock) {
        let begun = Record { id: None, size: record.size, packed_size: record.packed_size };
        self.effects().records.insert(record.archive_id.clone(), begun);
    }

    /// It is registered.
    pub(crate) fn record_registered(&self, registered: &RegisteredDatablock) {
        if let Some(record) = self.effects().records.get_mut(&registered.archive_id) {
            record.id = Some(registered.id.clone());
        }
    }

    /// It was refused: what the catalogue has under this archive id is another run's.
    pub(crate) fn record_refused(&self, archive_id: &ObjectKey) {
        self.effects().records.remove(archive_id);
    }

    /// Whether this run has registered a record, or may have.
    pub(crate) fn has_records(&self) -> bool {
        !self.effects().records.is_empty()
    }

    /// Forgets everything: from here on nothing may be undone.
    pub(crate) fn seal(&self) {
        *self.effects() = Effects::default();
    }

    /// Undoes all effects: uploads first, then records, then the objects that no record names.
    pub(crate) async fn undo(
        &self,
        store: &dyn ObjectStore,
        catalogue: &dyn Catalogue,
        dataset: &DatasetId,
    ) -> UndoReport {
        let Effects { uploads, objects, records } = std::mem::take(&mut *self.effects());
        let mut report = UndoReport::default();
        for (address, upload) in uploads {
            match store.abort_upload(&address, &upload).await {
                Ok(()) => report.aborted_uploads += 1,
                Err(error) => report.problems.push(format!("a multipart upload is left open: {error}")),
            }
        }
        if records.is_empty() && objects.is_empty() {
            return report;
        }
        let Some(named) = delete_records(catalogue, dataset, &records, &mut report).await else {
            return report;
        };
        for (address, written) in objects {
            if let Err(problem) = delete_object(store, &address, &written, &named, &mut report).await {
                report.problems.push(format!("{address} is left in the archive: {problem}"));
            }
        }
        report
    }
}

/// Removes the run's records. Gives the archive ids that the catalogue still names; `None` if nobody knows.
async fn delete_records(
    catalogue: &dyn Catalogue,
    dataset: &DatasetId,
    records: &BTreeMap<ObjectKey, Record>,
    report: &mut UndoReport,
) -> Option<BTreeSet<ObjectKey>> {
    let registered = match catalogue.datablocks(dataset).await {
        Ok(registered) => registered,
        Err(error) => {
            report.problems.push(format!(
                "records and tars of {dataset} are left as they are, since the catalogue does not tell them: {error}"
            ));
            return None;
        }
    };
    let mut named = BTreeSet::new();
    for datablock in registered {
        let ours = records.get(&datablock.archive_id).is_some_and(|record| record.is(&datablock));
        if !(ours && delete_record(catalogue, dataset, &datablock.id, report).await) {
            named.insert(datablock.archive_id);
        }
    }
    Some(named)
}

async fn delete_record(
    catalogue: &dyn Catalogue,
    dataset: &DatasetId,
    id: &DatablockId,
    report: &mut UndoReport,
) -> bool {
    match catalogue.delete_datablock(dataset, id).await {
        Ok(()) => report.deleted_records += 1,
        Err(error) => {
            report.problems.push(format!("datablock {id} of {dataset} is left in the catalogue: {error}"));
            return false;
        }
    }
    true
}

/// Deletes an object if it is this run's alone; else tells why not.
async fn delete_object(
    store: &dyn ObjectStore,
    address: &ObjectAddress,
    written: &Written,
    named: &BTreeSet<ObjectKey>,
    report: &mut UndoReport,
) -> Result<(), String> {
    if named.contains(&address.key) {
        return Err("the catalogue names it".to_owned());
    }
    if written.preexisting {
        return Err("an object of this name was there before".to_owned());
    }
    let Some(info) = store.head(address).await.map_err(|error| error.to_string())? else { return Ok(()) };
    if !written.tags.contains(&info.etag) {
        return Err("it is not the one that this run stored".to_owned());
    }
    store
        .delete(&DeletionPermit::new(address.clone(), info.etag))
        .await
        .map_err(|error| error.to_string())?;
    report.deleted_objects += 1;
    Ok(())
}
