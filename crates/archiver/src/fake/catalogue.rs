//! The catalogue in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;

use super::locked;
use crate::{
    ArchivedFile, Catalogue, CatalogueError, Claims, DataFile, Datablock, DatablockId, DatasetId, JobId,
    JobResult, JobStatus, LifecycleChange, LifecycleStatus, ObjectKey, RegisteredDatablock,
};

/// Decides whether a call fails. It gets the call's name (that of the port's method).
pub type CatalogueFault = Box<dyn FnMut(&str) -> Option<CatalogueError> + Send>;

/// A catalogue error that may pass.
pub fn catalogue_unavailable(action: &str) -> CatalogueError {
    CatalogueError::Unavailable { action: action.to_owned(), source: "injected".into() }
}

/// A catalogue in memory.
#[derive(Default)]
pub struct MemoryCatalogue {
    state: Mutex<CatalogueState>,
    fault: Mutex<Option<CatalogueFault>>,
}

#[derive(Default)]
struct CatalogueState {
    claims: BTreeMap<DatasetId, Claims>,
    datablocks: BTreeMap<DatasetId, Vec<RegisteredDatablock>>,
    records: BTreeMap<ObjectKey, Datablock>,
    lose_answers: bool,
    lifecycles: BTreeMap<DatasetId, Vec<LifecycleChange>>,
    jobs: BTreeMap<String, (Vec<DatasetId>, Vec<JobStatus>)>,
    calls: Vec<String>,
    next_id: usize,
}

impl fmt::Debug for MemoryCatalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryCatalogue")
    }
}

impl MemoryCatalogue {
    /// Lists the files of a dataset.
    pub fn set_claims(&self, dataset: &DatasetId, claims: Claims) {
        locked(&self.state).claims.insert(dataset.clone(), claims);
    }

    /// Makes a job about these datasets.
    pub fn add_job(&self, job: JobId, datasets: Vec<DatasetId>) {
        locked(&self.state).jobs.insert(job.to_string(), (datasets, Vec::new()));
    }

    /// Registers a datablock, as if another run had done so.
    pub fn add_datablock(&self, dataset: &DatasetId, archive_id: &ObjectKey, packed_size: u64) {
        locked(&self.state).register(dataset, archive_id, 0, packed_size);
    }

    /// From now on datablocks are registered, but nobody is told.
    pub fn lose_answers_to_registrations(&self) {
        locked(&self.state).lose_answers = true;
    }

    /// The full record registered under an archive id by this process.
    pub fn record(&self, archive_id: &ObjectKey) -> Option<Datablock> {
        locked(&self.state).records.get(archive_id).cloned()
    }

    /// The archive ids registered for a dataset.
    pub fn archive_ids(&self, dataset: &DatasetId) -> Vec<String> {
        let state = locked(&self.state);
        state
            .datablocks
            .get(dataset)
            .into_iter()
            .flatten()
            .map(|block| block.archive_id.to_string())
            .collect()
    }

    /// The lifecycle changes of a dataset, in order.
    pub fn lifecycle(&self, dataset: &DatasetId) -> Vec<LifecycleChange> {
        locked(&self.state).lifecycles.get(dataset).cloned().unwrap_or_default()
    }

    /// The statuses a job went through.
    pub fn job_statuses(&self, job: JobId) -> Vec<JobStatus> {
        locked(&self.state)
            .jobs
            .get(&job.to_string())
            .map(|(_, statuses)| statuses.clone())
            .unwrap_or_default()
    }

    /// The names of all calls so far.
    pub fn calls(&self) -> Vec<String> {
        locked(&self.state).calls.clone()
    }

    /// From now on `fault` decides which calls fail.
    pub fn set_fault(&self, fault: impl FnMut(&str) -> Option<CatalogueError> + Send + 'static) {
        *locked(&self.fault) = Some(Box::new(fault));
    }

    /// From now on no call fails.
    pub fn clear_fault(&self) {
        *locked(&self.fault) = None;
    }

    fn call(&self, method: &str) -> Result<MutexGuard<'_, CatalogueState>, CatalogueError> {
        locked(&self.state).calls.push(method.to_owned());
        match locked(&self.fault).as_mut().and_then(|fault| fault(method)) {
            Some(error) => Err(error),
            None => Ok(locked(&self.state)),
        }
    }
}

impl CatalogueState {
    fn register(
        &mut self,
        dataset: &DatasetId,
        archive_id: &ObjectKey,
        size: u64,
        packed_size: u64,
    ) -> RegisteredDatablock {
        self.next_id += 1;
        let id = DatablockId(format!("record-{}", self.next_id));
        let registered = RegisteredDatablock { id, archive_id: archive_id.clone(), size, packed_size };
        self.datablocks.entry(dataset.clone()).or_default().push(registered.clone());
        registered
    }
}

#[async_trait]
impl Catalogue for MemoryCatalogue {
    async fn job_datasets(&self, job: JobId) -> Result<Vec<DatasetId>, CatalogueError> {
        let state = self.call("job_datasets")?;
        state.jobs.get(&job.to_string()).map(|(datasets, _)| datasets.clone()).ok_or_else(|| {
            CatalogueError::NotFound {
                action: format!("read job {job}"),
                message: "Invalid job id.".to_owned(),
            }
        })
    }

    async fn job_status(&self, job: JobId) -> Result<Option<JobStatus>, CatalogueError> {
        let state = self.call("job_status")?;
        Ok(state.jobs.get(&job.to_string()).and_then(|(_, statuses)| statuses.last().copied()))
    }

    async fn update_job(
        &self,
        job: JobId,
        status: JobStatus,
        _result: Option<&JobResult>,
    ) -> Result<(), CatalogueError> {
        let mut state = self.call("update_job")?;
        state.jobs.entry(job.to_string()).or_default().1.push(status);
        Ok(())
    }

    async fn update_lifecycle(
        &self,
        dataset: &DatasetId,
        change: &LifecycleChange,
    ) -> Result<(), CatalogueError> {
        self.call("update_lifecycle")?.lifecycles.entry(dataset.clone()).or_default().push(*change);
        Ok(())
    }

    async fn lifecycle_status(&self, dataset: &DatasetId) -> Result<LifecycleStatus, CatalogueError> {
        let state = self.call("lifecycle_status")?;
        let mut status = LifecycleStatus::default();
        for change in state.lifecycles.get(dataset).into_iter().flatten() {
            status.archive = change.archive_status_message.or(status.archive);
            status.retrieve = change.retrieve_status_message.or(status.retrieve);
        }
        Ok(status)
    }

    async fn claims(&self, dataset: &DatasetId) -> Result<Claims, CatalogueError> {
        Ok(self.call("claims")?.claims.get(dataset).cloned().unwrap_or_default())
    }

    async fn datablocks(&self, dataset: &DatasetId) -> Result<Vec<RegisteredDatablock>, CatalogueError> {
        Ok(self.call("datablocks")?.datablocks.get(dataset).cloned().unwrap_or_default())
    }

    async fn archived_files(&self, dataset: &DatasetId) -> Result<Vec<ArchivedFile>, CatalogueError> {
        let state = self.call("archived_files")?;
        let registered = state.datablocks.get(dataset).into_iter().flatten();
        let records = registered.filter_map(|datablock| state.records.get(&datablock.archive_id));
        let file = |file: &DataFile| ArchivedFile {
            path: file.path.clone(),
            size: file.size,
            md5: Some(file.chk.to_string()),
        };
        Ok(records.flat_map(|record| record.data_file_list.iter().map(file)).collect())
    }

    async fn register_datablock(
        &self,
        dataset: &DatasetId,
        datablock: &Datablock,
    ) -> Result<RegisteredDatablock, CatalogueError> {
        let mut state = self.call("register_datablock")?;
        state.records.insert(datablock.archive_id.clone(), datablock.clone());
        let registered =
            state.register(dataset, &datablock.archive_id, datablock.size, datablock.packed_size);
        if state.lose_answers { Err(catalogue_unavailable("register_datablock")) } else { Ok(registered) }
    }

    async fn delete_datablock(&self, dataset: &DatasetId, id: &DatablockId) -> Result<(), CatalogueError> {
        let mut state = self.call("delete_datablock")?;
        if let Some(datablocks) = state.datablocks.get_mut(dataset) {
            datablocks.retain(|datablock| datablock.id != *id);
        }
        Ok(())
    }
}
