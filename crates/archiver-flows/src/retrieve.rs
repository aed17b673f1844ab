//! `retrieve_datasetlist`: makes the datasets of a job downloadable and hands out the links.

use archiver::{DatasetId, JobId, JobResult, JobStatus, RetrieveError, RetrievedDatablock, download_script};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prefect_flow::{BoxError, Context, Done, Entered, Flow, TaskError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::{Job, JobError, Outcomes};
use crate::orphan::{self, OrphanError, Purpose};
use crate::other_runs::{self, WaitFor};
use crate::retrieve_dataset::{self, RetrievalParameters};
use crate::site::Site;
use crate::step;

/// What to retrieve.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetrieveJob {
    /// The retrieve job in SciCat.
    #[schemars(with = "String", extend("format" = "uuid"))]
    job_id: JobId,
}

/// The flow.
pub(crate) fn flow() -> Flow<RetrieveJob> {
    Flow::new("retrieve_datasetlist", retrieve_datasetlist)
        .description(
            "Makes the datasets of a SciCat job downloadable and puts the links into the job's result.",
        )
        .run_name("retrieve_datasetlist-job_id-{job_id}")
        .on_cancellation("tell_job", tell_job)
        .on_crashed("tell_job", tell_job)
}

/// Tells a job whose run did not do it.
async fn tell_job(ctx: Context, parameters: RetrieveJob, entered: Entered) -> Result<(), OrphanError> {
    orphan::tell(&ctx, Purpose::Retrieve, parameters.job_id, None, &entered).await
}

async fn retrieve_datasetlist(ctx: Context, parameters: RetrieveJob) -> Result<(), JobError> {
    let site = Site::open(&ctx).await?;
    let job = Job {
        ctx: &ctx,
        site: &site,
        id: parameters.job_id,
        status_task: "update_scicat_retrieval_job_status",
    };
    let datasets = match job.begin(None).await {
        Ok(datasets) => datasets,
        Err(error) => return Err(job.abandon(error).await),
    };
    let outcomes = retrieve_all(&job, &datasets).await;
    if outcomes.done.is_empty() {
        let told = job.finish(JobStatus::FinishedUnsuccessful, None).await;
        outcomes.into_result("retrieve", job.id)?;
        return told;
    }
    let result = match make_result(&ctx, &site, job.id, &outcomes.done).await {
        Ok(result) => result,
        Err(error) => return Err(job.abandon(error).await),
    };
    let told = job.finish(outcomes.status(), Some(&result)).await;
    outcomes.into_result("retrieve", job.id)?;
    told
}

async fn retrieve_all(job: &Job<'_>, datasets: &Done<Vec<DatasetId>>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let progress = job.progress("retrieve");
    for dataset in datasets.iter() {
        if job.ctx.is_cancelled() {
            outcomes.fail(dataset, "not begun, since the run was cancelled");
            continue;
        }
        match retrieve_one(job.ctx, job.site, job.id, dataset, datasets).await {
            Ok(()) => outcomes.done.push(dataset.clone()),
            Err(reason) => outcomes.fail(dataset, reason),
        }
        if let Some(progress) = &progress {
            progress.set_of(outcomes.total() as u64, datasets.len() as u64);
        }
    }
    outcomes
}

/// Retrieves a dataset, or waits for another run that is doing it. An error is the reason in words.
async fn retrieve_one(
    ctx: &Context,
    site: &Site,
    job: JobId,
    dataset: &DatasetId,
    datasets: &Done<Vec<DatasetId>>,
) -> Result<(), String> {
    let name = format!("retrieve_dataset-dataset_id-{dataset}");
    match other_runs::find(ctx, &name, &other_runs::UNFINISHED, ctx.flow_run_id()).await {
        Ok(Some(flow_run_id)) => {
            let waited =
                ctx.subflow(&other_runs::waiting_flow(), WaitFor { flow_run_id }).wait_for(datasets).await;
            match waited {
                Ok(completed) if *completed => return Ok(()),
                Ok(_) => ctx.warn(format!("the other run did not retrieve {dataset}; doing it here")),
                Err(error) => return Err(step::inner_chain(&error)),
            }
        }
        Ok(None) => {}
        // Retrieving twice at once does no harm: the store knows of a restore that is under way.
        Err(error) => ctx.warn(format!("other runs could not be looked for: {error}")),
    }
    let parameters = RetrievalParameters { dataset_id: dataset.clone(), job_id: job };
    let retrieved = ctx.subflow(&retrieve_dataset::flow(site.clone()), parameters).wait_for(datasets).await;
    retrieved.map(|_| ()).map_err(|error| step::inner_chain(&error))
}

/// Makes the job's result and shows it in the run: a link for each datablock, and the download script.
async fn make_result(
    ctx: &Context,
    site: &Site,
    job: JobId,
    datasets: &[DatasetId],
) -> Result<JobResult, TaskError> {
    let result = step::patiently(step::of_job(ctx, "create_job_result_object_task", job))
        .run(|task| async move {
            let links = publish(&task, site, datasets).await?;
            let script = download_script(&links);
            show(&task, &links, &script).await?;
            let download_script = BASE64.encode(script);
            Ok::<_, BoxError>(JobResult { result: links, download_script })
        })
        .await?;
    Ok(result.into_value())
}

async fn publish(
    task: &Context,
    site: &Site,
    datasets: &[DatasetId],
) -> Result<Vec<RetrievedDatablock>, RetrieveError> {
    let mut links = Vec::new();
    for dataset in datasets {
        let datablocks = site.retriever.datablocks(dataset).await?;
        // They can be read, unless it took so long that the first ones went offline again.
        let progress = archiver::Progress::none();
        let readable =
            site.retriever.await_readable(dataset, &datablocks, task.cancellation(), &progress).await?;
        links.extend(site.retriever.publish(&readable).await?);
    }
    Ok(links)
}

async fn show(task: &Context, links: &[RetrievedDatablock], script: &str) -> Result<(), BoxError> {
    for link in links {
        let key = link.artifact_key();
        let url = link.url.expose();
        task.link(&key, url, url, Some(&format!("Link to a datablock {key}"))).await?;
    }
    let text = format!("Download script for all datablocks in this job\n```bash\n{script}```\n");
    task.markdown("script", text, None).await?;
    Ok(())
}
