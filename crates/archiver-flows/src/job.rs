//! A job of the catalogue: telling it how it stands, and what became of its datasets.

use std::collections::BTreeSet;
use std::fmt;

use archiver::{CatalogueError, DatasetId, JobId, JobResult, JobStatus};
use prefect_flow::{Context, Done, Progress, TaskError, chain};

use crate::site::{Site, SiteError};
use crate::step;

/// Most failed datasets whose reasons the state of a run names.
const NAMED: usize = 10;

/// The job that a flow run is about.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) site: &'a Site,
    pub(crate) id: JobId,
    /// Name of the task that reports the job's status.
    pub(crate) status_task: &'static str,
}

/// Why a job's run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Step(Box<TaskError>),
    #[error("report the end of job {job}")]
    Report { job: JobId, source: Box<TaskError> },
    #[error("{purpose} {} of {} datasets of job {job}: {}", .outcomes.failed.len(), .outcomes.total(), .outcomes.reasons())]
    Datasets { purpose: &'static str, job: JobId, outcomes: Outcomes },
}

/// Why a job's datasets cannot be processed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectionError {
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("find the datasets of job {0}: it names none")]
    NoDatasets(JobId),
    #[error("use parameter dataset_ids: it is empty; leave it out to process all datasets of the job")]
    NothingWanted,
    #[error("use parameter dataset_ids: {} not in job {job}", listed(.strangers))]
    Strangers { job: JobId, strangers: Vec<DatasetId> },
}

fn listed(ids: &[DatasetId]) -> String {
    let names: Vec<_> = ids.iter().map(DatasetId::as_str).collect();
    format!("{} {}", names.join(", "), if ids.len() == 1 { "is" } else { "are" })
}

impl Job<'_> {
    /// Tells the job that work has begun, and asks it for its datasets. With `wanted` only those.
    pub(crate) async fn begin(
        &self,
        wanted: Option<&[DatasetId]>,
    ) -> Result<Done<Vec<DatasetId>>, TaskError> {
        let told = step::patiently(step::of_job(self.ctx, self.status_task, self.id))
            .run(|_task| self.site.catalogue.update_job(self.id, JobStatus::InProgress, None))
            .await?;
        step::patiently(step::of_job(self.ctx, "get_job_datasetlist", self.id))
            .wait_for(&told)
            .run(|task| async move {
                let datasets = self.site.catalogue.job_datasets(self.id).await?;
                let datasets = select(self.id, datasets, wanted)?;
                task.info(format!("job {} has {} datasets to process", self.id, datasets.len()));
                Ok::<_, SelectionError>(datasets)
            })
            .await
    }

    /// The progress artifact of the job: its datasets done, of all. A run goes on without one.
    pub(crate) fn progress(&self, purpose: &str) -> Option<Progress> {
        let key = format!("{purpose}-job-{}", self.id);
        let made = self.ctx.progress(&key, Some(&format!("Datasets of job {}", self.id)));
        made.inspect_err(|error| self.ctx.warn(format!("no progress is shown: {error}"))).ok()
    }

    /// Tells the job how it ended, also while the run is being cancelled.
    pub(crate) async fn finish(&self, status: JobStatus, result: Option<&JobResult>) -> Result<(), JobError> {
        let task = || step::of_job(self.ctx, self.status_task, self.id);
        let told =
            step::report(self.ctx, task, || self.site.catalogue.update_job(self.id, status, result)).await;
        match told {
            Ok(()) => {
                self.ctx.info(format!("job {}: {status}", self.id));
                Ok(())
            }
            Err(source) => {
                let reason = chain(&source);
                self.ctx.error(format!("job {} was not told that it is {status}: {reason}", self.id));
                Err(JobError::Report { job: self.id, source: Box::new(source) })
            }
        }
    }

    /// Ends a job of which nothing was done, because of `error`.
    pub(crate) async fn abandon(&self, error: TaskError) -> JobError {
        match self.finish(JobStatus::FinishedUnsuccessful, None).await {
            // The first error is the one to tell; the second is in the log.
            Ok(()) | Err(_) => JobError::Step(Box::new(error)),
        }
    }
}

/// The datasets to process: each once, in the job's order.
fn select(
    job: JobId,
    datasets: Vec<DatasetId>,
    wanted: Option<&[DatasetId]>,
) -> Result<Vec<DatasetId>, SelectionError> {
    let known: BTreeSet<DatasetId> = datasets.iter().cloned().collect();
    if known.is_empty() {
        return Err(SelectionError::NoDatasets(job));
    }
    if wanted.is_some_and(<[_]>::is_empty) {
        return Err(SelectionError::NothingWanted);
    }
    let strangers: Vec<_> =
        wanted.unwrap_or_default().iter().filter(|id| !known.contains(id)).cloned().collect();
    if !strangers.is_empty() {
        return Err(SelectionError::Strangers { job, strangers });
    }
    let mut seen = BTreeSet::new();
    let is_wanted = |id: &DatasetId| wanted.is_none_or(|wanted| wanted.contains(id));
    Ok(datasets.into_iter().filter(|id| is_wanted(id) && seen.insert(id.clone())).collect())
}

/// What became of the datasets of a job.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) done: Vec<DatasetId>,
    pub(crate) failed: Vec<Failure>,
}

/// A dataset that was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    dataset: DatasetId,
    reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.dataset, self.reason)
    }
}

impl Outcomes {
    /// Enters that `dataset` failed.
    pub(crate) fn fail(&mut self, dataset: &DatasetId, reason: impl Into<String>) {
        self.failed.push(Failure { dataset: dataset.clone(), reason: reason.into() });
    }

    pub(crate) fn total(&self) -> usize {
        self.done.len() + self.failed.len()
    }

    /// How the job ends.
    pub(crate) fn status(&self) -> JobStatus {
        JobStatus::of_outcomes(self.done.len(), self.failed.len())
    }

    /// An error if a dataset failed. `purpose` is what was to be done with the datasets, as a verb.
    pub(crate) fn into_result(self, purpose: &'static str, job: JobId) -> Result<(), JobError> {
        if self.failed.is_empty() { Ok(()) } else { Err(JobError::Datasets { purpose, job, outcomes: self }) }
    }

    fn reasons(&self) -> String {
        let named: Vec<_> = self.failed.iter().take(NAMED).map(Failure::to_string).collect();
        let more = self.failed.len().saturating_sub(NAMED);
        let tail = if more == 0 { String::new() } else { format!("; and {more} more") };
        format!("{}{tail}", named.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<DatasetId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn job() -> JobId {
        "0f0e0d0c-0b0a-0908-0706-050403020100".parse().unwrap()
    }

    #[test]
    fn all_datasets_are_processed_once_unless_some_are_named() {
        let all = || ids(&["a/1", "a/2", "a/1", "a/3"]);
        assert_eq!(select(job(), all(), None).unwrap(), ids(&["a/1", "a/2", "a/3"]));
        assert_eq!(select(job(), all(), Some(&ids(&["a/3", "a/1"]))).unwrap(), ids(&["a/1", "a/3"]));
    }

    #[test]
    fn datasets_outside_of_the_job_are_refused() {
        let error = |list: &[&str], wanted: &[&str]| {
            select(job(), ids(list), Some(&ids(wanted))).unwrap_err().to_string()
        };
        insta::assert_snapshot!(error(&["a/1"], &["a/1", "b/1"]), @"use parameter dataset_ids: b/1 is not in job 0f0e0d0c-0b0a-0908-0706-050403020100");
        assert!(error(&["a/1"], &[]).contains("it is empty"));
        assert!(error(&[], &["a/1"]).contains("names none"));
    }

    #[test]
    fn a_failed_job_names_its_failed_datasets() {
        let mut outcomes = Outcomes { done: ids(&["a/1"]), ..Outcomes::default() };
        outcomes.fail(&ids(&["a/2"])[0], "upload part 3: no route to host");
        assert_eq!(outcomes.status(), JobStatus::FinishedWithDatasetErrors);
        let error = outcomes.into_result("archive", job()).unwrap_err();
        insta::assert_snapshot!(error, @"archive 1 of 2 datasets of job 0f0e0d0c-0b0a-0908-0706-050403020100: a/2 (upload part 3: no route to host)");
    }

    #[test]
    fn a_long_list_of_failures_is_counted() {
        let mut outcomes = Outcomes::default();
        for number in 0..12 {
            outcomes.fail(&format!("a/{number}").parse().unwrap(), "no");
        }
        assert_eq!(outcomes.status(), JobStatus::FinishedUnsuccessful);
        assert!(outcomes.reasons().ends_with("a/9 (no); and 2 more"), "{}", outcomes.reasons());
    }
}
