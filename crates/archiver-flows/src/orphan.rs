//! A job whose run ended without telling it: the process was killed, or had no time left. The hooks for a crash and a
//! cancellation tell the job, and the datasets that look as if somebody were at work on them. They change nothing else:
//! what the run has stored or registered stays, and the next run deals with it.

use std::collections::BTreeSet;

use archiver::{
    ArchiveStatus, CatalogueError, DatasetId, FailureClass, JobId, JobStatus, LifecycleChange, RetrieveStatus,
};
use prefect_flow::{Context, Entered, chain, client};

use crate::other_runs::{self, AT_WORK, UNFINISHED};
use crate::site::{Site, SiteError};

/// Why a job was not told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrphanError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("find out whether another run is working on job {job}")]
    OtherRuns { job: JobId, source: client::Error },
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("tell {untold} of {total} datasets of job {job} how they stand")]
    Datasets { job: JobId, untold: usize, total: usize },
}

/// What was to be done with a job's datasets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Archive,
    Retrieve,
}

impl Purpose {
    /// The names of runs that are about this job, or this dataset.
    fn runs(self, job: JobId) -> String {
        match self {
            Self::Archive => format!("archive_datasetlist-job_id-{job}"),
            Self::Retrieve => format!("retrieve_datasetlist-job_id-{job}"),
        }
    }

    fn dataset_runs(self, dataset: &DatasetId) -> String {
        match self {
            Self::Archive => format!("archive_dataset-dataset_id-{dataset}"),
            Self::Retrieve => format!("retrieve_dataset-dataset_id-{dataset}"),
        }
    }

    /// The states of a run that will tell the dataset itself.
    const fn states(self) -> &'static [&'static str] {
        match self {
            Self::Archive => &AT_WORK,
            Self::Retrieve => &UNFINISHED,
        }
    }
}

/// How a dataset stands.
enum Fate {
    /// It is archived.
    Done,
    /// It is not.
    NotDone,
    /// Another run is at work on it.
    Anothers,
}

/// Tells a job and its datasets how they stand, unless they know. `wanted` restricts it to these datasets.
pub(crate) async fn tell(
    ctx: &Context,
    purpose: Purpose,
    job: JobId,
    wanted: Option<&[DatasetId]>,
    entered: &Entered,
) -> Result<(), OrphanError> {
    let site = Site::open(ctx).await?;
    let told = site.catalogue.job_status(job).await?;
    if let Some(status) = told.filter(|status| status.is_final()) {
        ctx.info(format!("job {job} knows how it ended: {status}"));
        return Ok(());
    }
    let other = other_runs::find(ctx, &purpose.runs(job), &UNFINISHED, ctx.flow_run_id()).await;
    if let Some(other) = other.map_err(|source| OrphanError::OtherRuns { job, source })? {
        ctx.info(format!("job {job} is left to flow run {other}"));
        return Ok(());
    }
    let datasets: BTreeSet<DatasetId> = site.catalogue.job_datasets(job).await?.into_iter().collect();
    let (mut done, mut total, mut untold) = (0, 0, 0);
    for dataset in &datasets {
        if wanted.is_some_and(|wanted| !wanted.contains(dataset)) {
            continue;
        }
        total += 1;
        match tell_dataset(ctx, &site, purpose, dataset).await {
            Ok(Fate::Done) => done += 1,
            Ok(Fate::NotDone) => {}
            Ok(Fate::Anothers) => ctx.info(format!("{dataset} is left to another run")),
            Err(error) => {
                untold += 1;
                ctx.error(format!("{dataset} was not told how it stands: {}", chain(&*error)));
            }
        }
    }
    // Without links there is nothing to download, and a job that was not begun has done nothing.
    let begun = told.is_some() && matches!(purpose, Purpose::Archive);
    let status = if begun && total > 0 {
        JobStatus::of_outcomes(done, total - done)
    } else {
        JobStatus::FinishedUnsuccessful
    };
    site.catalogue.update_job(job, status, None).await?;
    ctx.warn(format!("job {job}: {status}; its run ended as {} without telling it", entered.name));
    if untold > 0 {
        return Err(OrphanError::Datasets { job, untold, total });
    }
    Ok(())
}

async fn tell_dataset(
    ctx: &Context,
    site: &Site,
    purpose: Purpose,
    dataset: &DatasetId,
) -> Result<Fate, prefect_flow::BoxError> {
    let status = site.catalogue.lifecycle_status(dataset).await?;
    let change = match purpose {
        Purpose::Archive if status.archive == Some(ArchiveStatus::DatasetOnArchiveDisk) => {
            return Ok(Fate::Done);
        }
        // Only before a dataset is declared archived. Until then its landing zone is untouched.
        Purpose::Archive if status.archive == Some(ArchiveStatus::Started) => {
            LifecycleChange::archive_failed(FailureClass::System)
        }
        Purpose::Retrieve if status.retrieve == Some(RetrieveStatus::Started) => {
            LifecycleChange::retrieve_failed()
        }
        Purpose::Archive | Purpose::Retrieve => return Ok(Fate::NotDone),
    };
    let name = purpose.dataset_runs(dataset);
    if other_runs::find(ctx, &name, purpose.states(), ctx.flow_run_id()).await?.is_some() {
        return Ok(Fate::Anothers);
    }
    site.catalogue.update_lifecycle(dataset, &change).await?;
    ctx.warn(format!("{dataset}: nobody is at work on it any more; told so"));
    Ok(Fate::NotDone)
}
