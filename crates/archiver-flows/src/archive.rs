//! `archive_datasetlist`: archives the datasets of a job.

use archiver::{DatasetId, JobId};
use prefect_flow::{Context, Done, Entered, Flow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::archive_dataset::{self, DatasetParameters};
use crate::job::{Job, JobError, Outcomes};
use crate::orphan::{self, OrphanError, Purpose};
use crate::site::Site;
use crate::step;

/// What to archive.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArchiveJob {
    /// The archive job in SciCat.
    #[schemars(with = "String", extend("format" = "uuid"))]
    job_id: JobId,
    /// Archive only these datasets of the job.
    #[serde(default)]
    #[schemars(with = "Option<Vec<String>>")]
    dataset_ids: Option<Vec<DatasetId>>,
}

/// The flow.
pub(crate) fn flow() -> Flow<ArchiveJob> {
    Flow::new("archive_datasetlist", archive_datasetlist)
        .description("Archives the datasets of a SciCat job from the landing zone into tar datablocks.")
        .run_name("archive_datasetlist-job_id-{job_id}")
        .on_cancellation("tell_job", tell_job)
        .on_crashed("tell_job", tell_job)
}

/// Tells a job whose run did not do it.
async fn tell_job(ctx: Context, parameters: ArchiveJob, entered: Entered) -> Result<(), OrphanError> {
    let wanted = parameters.dataset_ids.as_deref();
    orphan::tell(&ctx, Purpose::Archive, parameters.job_id, wanted, &entered).await
}

async fn archive_datasetlist(ctx: Context, parameters: ArchiveJob) -> Result<(), JobError> {
    let site = Site::open(&ctx).await?;
    let job = Job {
        ctx: &ctx,
        site: &site,
        id: parameters.job_id,
        status_task: "update_scicat_archival_job_status",
    };
    let datasets = match job.begin(parameters.dataset_ids.as_deref()).await {
        Ok(datasets) => datasets,
        Err(error) => return Err(job.abandon(error).await),
    };
    let outcomes = archive_all(&job, &datasets).await;
    let told = job.finish(outcomes.status(), None).await;
    outcomes.into_result("archive", job.id)?;
    told
}

/// Archives one dataset after the other: each alone fills the memory that a run may use.
async fn archive_all(job: &Job<'_>, datasets: &Done<Vec<DatasetId>>) -> Outcomes {
    let ctx = job.ctx;
    let flow = archive_dataset::flow(job.site.clone(), ctx.flow_run_id());
    let mut outcomes = Outcomes::default();
    let progress = job.progress("archive");
    for dataset in datasets.iter() {
        if ctx.is_cancelled() {
            outcomes.fail(dataset, "not begun, since the run was cancelled");
            continue;
        }
        let parameters = DatasetParameters { dataset_id: dataset.clone() };
        match ctx.subflow(&flow, parameters).wait_for(datasets).await {
            Ok(_) => outcomes.done.push(dataset.clone()),
            Err(error) => outcomes.fail(dataset, step::inner_chain(&error)),
        }
        if let Some(progress) = &progress {
            progress.set_of(outcomes.total() as u64, datasets.len() as u64);
        }
    }
    outcomes
}
