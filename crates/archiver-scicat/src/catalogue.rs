//! The archiver's catalogue port over SciCat.

use archiver::{
    ArchivedFile, Catalogue, CatalogueError, Claims, Datablock, DatablockId, DatasetId, JobId, JobResult,
    JobStatus, LifecycleChange, LifecycleStatus, RegisteredDatablock,
};
use async_trait::async_trait;
use reqwest::Method;

use crate::client::{Call, Client, pause};
use crate::settings::Face;
use crate::wire::{
    DatablockHead, DatablockWithFiles, Dataset, Job, JobUpdateV3, JobUpdateV4, Lifecycle, OrigDatablock,
};
use crate::{SciCatSettings, SciCatSettingsError};

/// How often a datablock is posted before the error is told.
const POST_ATTEMPTS: u32 = 3;

/// A SciCat backend.
#[derive(Debug)]
pub struct SciCat {
    client: Client,
}

impl SciCat {
    /// The catalogue at the endpoint of `settings`. Does not connect; logs in when first needed.
    pub fn new(settings: SciCatSettings) -> Result<Self, SciCatSettingsError> {
        Ok(Self { client: Client::new(settings)? })
    }

    fn dataset_call(&self, action: &str, dataset: &DatasetId, method: Method, below: &[&str]) -> Call {
        let segments = [&["datasets", dataset.as_str()], below].concat();
        Call::new(format!("{action} of dataset {dataset}"), method, self.client.datasets.at(&segments))
    }

    /// The record with the archive id of `sent`, if the dataset has one.
    async fn find(
        &self,
        dataset: &DatasetId,
        sent: &Datablock,
    ) -> Result<Option<DatablockWithFiles>, CatalogueError> {
        let call = self.dataset_call("list the datablocks", dataset, Method::GET, &["datablocks"]);
        let datablocks: Vec<DatablockWithFiles> = self.client.fetch(call).await?;
        Ok(datablocks.into_iter().find(|datablock| *datablock.archive_id() == sent.archive_id))
    }
}

#[async_trait]
impl Catalogue for SciCat {
    async fn job_datasets(&self, job: JobId) -> Result<Vec<DatasetId>, CatalogueError> {
        let action = format!("read job {job}");
        let url = self.client.jobs.at(&["jobs", &job.to_string()]);
        let datasets = self.client.fetch::<Job>(Call::new(&*action, Method::GET, url)).await?.datasets();
        if datasets.is_empty() {
            return Err(CatalogueError::Malformed { action, source: "the job names no datasets".into() });
        }
        Ok(datasets)
    }

    async fn job_status(&self, job: JobId) -> Result<Option<JobStatus>, CatalogueError> {
        let url = self.client.jobs.at(&["jobs", &job.to_string()]);
        let call = Call::new(format!("read job {job}"), Method::GET, url);
        Ok(self.client.fetch::<Job>(call).await?.status())
    }

    async fn update_job(
        &self,
        job: JobId,
        status: JobStatus,
        result: Option<&JobResult>,
    ) -> Result<(), CatalogueError> {
        let url = self.client.jobs.at(&["jobs", &job.to_string()]);
        let call = Call::new(format!("set job {job} to {status}"), Method::PATCH, url);
        let call = match self.client.jobs.face {
            Face::V3 => call.json(&JobUpdateV3 { job_status_message: status, job_result_object: result })?,
            Face::V4 => call.json(&JobUpdateV4 {
                status_code: status,
                status_message: status,
                job_result_object: result,
            })?,
        };
        self.client.call(call).await.map(drop)
    }

    async fn update_lifecycle(
        &self,
        dataset: &DatasetId,
        change: &LifecycleChange,
    ) -> Result<(), CatalogueError> {
        let call = self.dataset_call("change the lifecycle", dataset, Method::PATCH, &["datasetlifecycle"]);
        self.client.call(call.json(change)?).await.map(drop)
    }

    async fn lifecycle_status(&self, dataset: &DatasetId) -> Result<LifecycleStatus, CatalogueError> {
        let call = self.dataset_call("read the lifecycle", dataset, Method::GET, &["datasetlifecycle"]);
        Ok(self.client.fetch::<Lifecycle>(call).await?.status())
    }

    async fn claims(&self, dataset: &DatasetId) -> Result<Claims, CatalogueError> {
        let call = self.dataset_call("read the record", dataset, Method::GET, &[]);
        let source_folder = self.client.fetch::<Dataset>(call).await?.source_folder;
        let call = self.dataset_call("list the files", dataset, Method::GET, &["origdatablocks"]);
        let blocks: Vec<OrigDatablock> = self.client.fetch(call).await?;
        Ok(Claims { source_folder, files: blocks.into_iter().flat_map(OrigDatablock::claims).collect() })
    }

    async fn datablocks(&self, dataset: &DatasetId) -> Result<Vec<RegisteredDatablock>, CatalogueError> {
        let call = self.dataset_call("list the datablocks", dataset, Method::GET, &["datablocks"]);
        let action = call.action.clone();
        let heads: Vec<DatablockHead> = self.client.fetch(call).await?;
        let registered: Option<Vec<_>> = heads.into_iter().map(DatablockHead::registered).collect();
        registered.ok_or_else(|| CatalogueError::Malformed { action, source: "a datablock has no id".into() })
    }

    async fn archived_files(&self, dataset: &DatasetId) -> Result<Vec<ArchivedFile>, CatalogueError> {
        let call = self.dataset_call("list the datablocks", dataset, Method::GET, &["datablocks"]);
        let datablocks: Vec<DatablockWithFiles> = self.client.fetch(call).await?;
        Ok(datablocks.into_iter().flat_map(DatablockWithFiles::archived_files).collect())
    }

    async fn register_datablock(
        &self,
        dataset: &DatasetId,
        datablock: &Datablock,
    ) -> Result<RegisteredDatablock, CatalogueError> {
        let action = format!("register datablock {}", datablock.archive_id);
        let url = self.client.datasets.at(&["datasets", dataset.as_str(), "datablocks"]);
        let mut attempt = 1;
        loop {
            let call = Call::new(&*action, Method::POST, url.clone()).json(datablock)?;
            let error = match self.client.fetch::<DatablockHead>(call).await {
                Ok(head) => {
                    return head.registered().ok_or_else(|| CatalogueError::Malformed {
                        action,
                        source: "the new datablock has no id".into(),
                    });
                }
                Err(error) => error,
            };
            // No answer, an unreadable one, or SciCat's word for both a fault and a taken archive id: the record
            // may have been made, by this attempt or an earlier one.
            if !(error.is_transient()
                || matches!(
                    error,
                    CatalogueError::Malformed { .. } | CatalogueError::Refused { status: 500, .. }
                ))
            {
                return Err(error);
            }
            let found = match self.find(dataset, datablock).await {
                Ok(found) => found,
                Err(unknown) => {
                    tracing::warn!(%dataset, error = %unknown, "nobody can tell whether a datablock was registered");
                    return Err(error);
                }
            };
            match found {
                Some(found) if found.is(datablock) => {
                    return found.head.registered().ok_or(error);
                }
                Some(_) => {
                    let message = "another datablock with this archive id is registered".to_owned();
                    return Err(CatalogueError::Refused { action, status: 409, message });
                }
                None if attempt == POST_ATTEMPTS => return Err(error),
                None => {
                    tracing::warn!(%dataset, attempt, error = %error, "a datablock was not registered, trying again");
                    pause(attempt).await;
                    attempt += 1;
                }
            }
        }
    }

    async fn delete_datablock(&self, dataset: &DatasetId, id: &DatablockId) -> Result<(), CatalogueError> {
        let call = self.dataset_call("remove a datablock", dataset, Method::DELETE, &["datablocks", &id.0]);
        match self.client.call(call).await {
            Ok(_) | Err(CatalogueError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
