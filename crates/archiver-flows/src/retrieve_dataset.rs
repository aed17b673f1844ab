//! `retrieve_dataset`: makes one dataset downloadable.
//!
//! A dataset is declared retrieved when each of its datablocks can really be read, not when that was asked for.

use archiver::{DatasetId, JobId, LifecycleChange, RegisteredDatablock, RetrieveError};
use prefect_flow::{Context, Done, Flow, TaskError, chain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::archive_dataset::told_by;
use crate::site::Site;
use crate::step;

const LIFECYCLE_TASK: &str = "update_scicat_retrieval_dataset_lifecycle";

/// Which dataset, for which job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetrievalParameters {
    /// The dataset's pid in SciCat.
    #[schemars(with = "String")]
    pub(crate) dataset_id: DatasetId,
    /// The retrieve job in SciCat.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub(crate) job_id: JobId,
}

/// The flow, as a part of `retrieve_datasetlist`.
pub(crate) fn flow(site: Site) -> Flow<RetrievalParameters> {
    Flow::new("retrieve_dataset", move |ctx: Context, parameters: RetrievalParameters| {
        let site = site.clone();
        async move { retrieve_dataset(&ctx, &site, &parameters.dataset_id).await }
    })
    .description("Makes one dataset downloadable.")
    .run_name("retrieve_dataset-dataset_id-{dataset_id}")
}

async fn retrieve_dataset(ctx: &Context, site: &Site, dataset: &DatasetId) -> Result<(), TaskError> {
    let found = step::patiently(step::of_dataset(ctx, "get_datablocks", dataset))
        .run(|_task| site.retriever.datablocks(dataset))
        .await;
    let retrieved = match found {
        Ok(datablocks) => make_readable(ctx, site, dataset, &datablocks).await,
        // It was never archived: there is nothing to say about its retrieval.
        Err(error) if is_not_archived(&error) => return Err(error),
        Err(error) => Err(error),
    };
    if retrieved.is_err() {
        let change = LifecycleChange::retrieve_failed();
        let task = || step::of_dataset(ctx, LIFECYCLE_TASK, dataset);
        let told = step::report(ctx, task, || site.catalogue.update_lifecycle(dataset, &change)).await;
        if let Err(problem) = told {
            let reason = chain(&problem);
            ctx.error(format!("the lifecycle of {dataset} was not updated: {reason}"));
        }
    }
    retrieved
}

fn is_not_archived(error: &TaskError) -> bool {
    matches!(error.downcast_ref(), Some(RetrieveError::NoDatablocks { .. }))
}

async fn make_readable(
    ctx: &Context,
    site: &Site,
    dataset: &DatasetId,
    datablocks: &Done<Vec<RegisteredDatablock>>,
) -> Result<(), TaskError> {
    let started = LifecycleChange::retrieve_started();
    step::patiently(step::of_dataset(ctx, LIFECYCLE_TASK, dataset))
        .wait_for(datablocks)
        .run(|_task| site.catalogue.update_lifecycle(dataset, &started))
        .await?;
    // All are asked for before the first is waited for: restores run side by side.
    let mut requested = Vec::with_capacity(datablocks.len());
    for datablock in datablocks.iter() {
        let asked = step::patiently(step::of_datablock(ctx, "restore_datablock", datablock.name()))
            .input("datablock", datablocks)
            .run(|task| async move {
                let state = site.retriever.request_restore(datablock).await?;
                task.info(format!("{} was {state:?} before", datablock.name()));
                Ok::<_, RetrieveError>(())
            })
            .await?;
        requested.push(asked);
    }
    let readable = step::patiently(step::of_dataset(ctx, "wait_for_restore", dataset))
        .wait_for_all(&requested)
        .run(|task| async move {
            let progress = told_by(&task);
            site.retriever.await_readable(dataset, datablocks, task.cancellation(), &progress).await
        })
        .await?;
    let retrieved = LifecycleChange::retrieved();
    step::patiently(step::of_dataset(ctx, LIFECYCLE_TASK, dataset))
        .wait_for(&readable)
        .run(|_task| site.catalogue.update_lifecycle(dataset, &retrieved))
        .await?;
    Ok(())
}
