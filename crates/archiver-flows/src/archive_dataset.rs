//! `archive_dataset`: archives one dataset, or leaves no trace of the attempt but its status.
//!
//! The order is the safety: datablocks are stored, then verified, then registered; the dataset is declared
//! archived when all are; the landing zone is emptied after that. Until then everything can be undone.

use std::time::{Duration, Instant};

use archiver::{
    ArchiveError, ArchivedDatablock, DatasetId, DatasetRun, Evidence, FailureClass, LifecycleChange, Plan,
    PlannedDatablock, StoredDatablock, UndoReport, VerifiedDatablock, artifact_key,
};
use prefect_api::id::FlowRunId;
use prefect_flow::{ArtifactError, BoxError, Context, Done, Flow, TaskError, chain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gauge::Gauge;
use crate::other_runs::{self, NotAlone};
use crate::site::Site;
use crate::step;

const LIFECYCLE_TASK: &str = "update_scicat_archival_dataset_lifecycle";

/// Most warnings about the files of one dataset that are logged.
const WARNINGS: usize = 50;

/// Which dataset.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatasetParameters {
    /// The dataset's pid in SciCat.
    #[schemars(with = "String")]
    pub(crate) dataset_id: DatasetId,
}

/// Why a dataset is not archived.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatasetError {
    #[error(transparent)]
    Step(#[from] TaskError),
    #[error("tell the catalogue that {dataset} is archived")]
    Declare { dataset: DatasetId, source: TaskError },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl DatasetError {
    fn archive_error(&self) -> Option<&ArchiveError> {
        match self {
            Self::Step(error) => error.downcast_ref(),
            Self::Declare { .. } | Self::Artifact(_) => None,
        }
    }

    /// What the reader can do about it.
    fn hint(&self) -> Option<String> {
        let Self::Step(error) = self else { return None };
        match error.downcast_ref::<NotAlone>() {
            Some(error) => error.hint(),
            None => self.archive_error().and_then(ArchiveError::hint),
        }
    }
}

/// The flow, as a part of `archive_datasetlist`, whose run is `parent`.
pub(crate) fn flow(site: Site, parent: FlowRunId) -> Flow<DatasetParameters> {
    Flow::new("archive_dataset", move |ctx: Context, parameters: DatasetParameters| {
        let site = site.clone();
        async move { archive_dataset(&ctx, &site, parent, &parameters.dataset_id).await }
    })
    .description("Archives one dataset.")
    .run_name("archive_dataset-dataset_id-{dataset_id}")
}

async fn archive_dataset(
    ctx: &Context,
    site: &Site,
    parent: FlowRunId,
    dataset: &DatasetId,
) -> Result<(), DatasetError> {
    let begun = step::patiently(step::of_dataset(ctx, "check_not_archived", dataset))
        .run(|_task| async move {
            other_runs::ensure_alone(ctx, parent, dataset).await?;
            Ok::<_, BoxError>(site.archiver.begin(dataset).await?)
        })
        .await;
    let run = match begun {
        Ok(run) => run,
        Err(error) => {
            let error = error.into();
            explain(ctx, &error);
            // Else nothing is known to be wrong with the dataset, and its lifecycle stays as it is.
            if error.archive_error().is_some_and(is_half_done) {
                let failed = LifecycleChange::archive_failed(FailureClass::System);
                tell_failure(ctx, site, dataset, failed).await;
            }
            return Err(error);
        }
    };
    let attempt = Attempt { ctx, site, run: &run };
    let archived = match attempt.make_datablocks().await {
        Ok(archived) => archived,
        Err(error) => return Err(attempt.give_up(error, LifecycleChange::archive_failed).await),
    };
    if let Err(error) = attempt.declare().await {
        // The change may have taken effect although its answer was lost: all of it is taken back.
        let back = |class| LifecycleChange {
            archivable: Some(true),
            retrievable: Some(false),
            ..LifecycleChange::archive_failed(class)
        };
        return Err(attempt.give_up(error, back).await);
    }
    attempt.empty_landing_zone(&archived).await;
    Ok(())
}

/// One attempt to archive one dataset.
struct Attempt<'a> {
    ctx: &'a Context,
    site: &'a Site,
    run: &'a DatasetRun,
}

impl Attempt<'_> {
    fn dataset(&self) -> &DatasetId {
        self.run.dataset()
    }

    /// Everything up to the last registered datablock.
    async fn make_datablocks(&self) -> Result<Vec<ArchivedDatablock>, DatasetError> {
        let started = LifecycleChange::archive_started();
        let told = step::patiently(step::of_dataset(self.ctx, LIFECYCLE_TASK, self.dataset()))
            .run(|_task| self.site.catalogue.update_lifecycle(self.dataset(), &started))
            .await?;
        let plan = self.plan(&told).await?;
        let verified = self.store_all(&plan).await?;
        let mut archived = Vec::with_capacity(verified.len());
        for datablock in verified {
            archived.push(self.register(&datablock).await?.into_value());
        }
        Ok(archived)
    }

    /// Finds the files and divides them into datablocks. What is wrong with them comes to light here, before
    /// anything is restored or copied.
    async fn plan(&self, told: &Done<()>) -> Result<Done<Plan>, DatasetError> {
        let claims = step::patiently(step::of_dataset(self.ctx, "get_origdatablocks", self.dataset()))
            .wait_for(told)
            .run(|_task| self.run.claims())
            .await?;
        let landed = step::patiently(step::of_dataset(self.ctx, "list_landing_zone", self.dataset()))
            .wait_for(&claims)
            .run(|task| async move {
                let landed = self.run.landed().await?;
                task.info(format!(
                    "{} files with {} bytes are in the landing zone",
                    landed.files().len(),
                    landed.bytes()
                ));
                Ok::<_, ArchiveError>(landed)
            })
            .await?;
        let plan = step::of_dataset(self.ctx, "create_datablock_entries", self.dataset())
            .input("origdatablocks", &claims)
            .input("landing_zone", &landed)
            .run(|task| {
                let planned = self.run.plan(landed.value.clone(), &claims);
                async move {
                    let plan = planned?;
                    tell_plan(&task, &plan);
                    Ok::<_, ArchiveError>(plan)
                }
            })
            .await?;
        step::patiently(step::of_dataset(self.ctx, "restore_landing_zone", self.dataset()))
            .wait_for(&plan)
            .run(|task| {
                let landed = &landed.value;
                async move { self.run.make_readable(landed, task.cancellation(), &told_by(&task)).await }
            })
            .await?;
        Ok(plan)
    }

    /// Stores and verifies the datablocks, one after the other: one fills the memory that a run may use.
    async fn store_all(&self, plan: &Done<Plan>) -> Result<Vec<Done<VerifiedDatablock>>, DatasetError> {
        let key = format!("archive-{}", artifact_key(&self.dataset().flat_name()));
        let bar = self.ctx.progress(&key, Some(&format!("Archiving {}", self.dataset())))?;
        let passes = if self.site.reads_back { 2 } else { 1 };
        let mut gauge = Gauge::new(bar, passes * (plan.bytes() + plan.files() as u64));
        let mut verified = Vec::with_capacity(plan.datablocks.len());
        for planned in &plan.datablocks {
            let units = planned.unpacked_size() + planned.files().len() as u64;
            let stored = self.store(plan, planned, &gauge.stage(units)).await?;
            gauge.advance(units);
            let units = if self.site.reads_back { units } else { 0 };
            verified.push(self.verify(stored, &gauge.stage(units)).await?);
            gauge.advance(units);
        }
        Ok(verified)
    }

    async fn store(
        &self,
        plan: &Done<Plan>,
        planned: &PlannedDatablock,
        progress: &archiver::Progress,
    ) -> Result<Done<StoredDatablock>, TaskError> {
        step::patiently(step::of_datablock(self.ctx, "upload_datablocks_to_s3", planned.name()))
            .input("datablock", plan)
            .run(|task| async move {
                let begun = Instant::now();
                let stored = self.run.store(planned, task.cancellation(), progress).await?;
                let record = stored.record();
                task.info(format!(
                    "stored {}: {} files, {} bytes, tar {} bytes, ETag {}, {}",
                    stored.name(),
                    record.data_file_list.len(),
                    record.size,
                    record.packed_size,
                    stored.etag(),
                    pace(record.packed_size, begun.elapsed()),
                ));
                Ok::<_, ArchiveError>(stored)
            })
            .await
    }

    async fn verify(
        &self,
        stored: Done<StoredDatablock>,
        progress: &archiver::Progress,
    ) -> Result<Done<VerifiedDatablock>, TaskError> {
        let stored = &stored;
        step::patiently(step::of_datablock(self.ctx, "verify_objects", stored.name()))
            .input("datablock", stored)
            .run(|task| async move {
                let begun = Instant::now();
                let verified = self.run.verify(stored.value.clone(), task.cancellation(), progress).await?;
                let evidence = match verified.evidence() {
                    Evidence::ReadBack => {
                        let read = pace(verified.record().packed_size, begun.elapsed());
                        format!("read back and compared file by file, {read}")
                    }
                    Evidence::ETag => "the store's ETag binds its content".to_owned(),
                };
                task.info(format!("verified {}: {evidence}", verified.name()));
                Ok::<_, ArchiveError>(verified)
            })
            .await
    }

    async fn register(
        &self,
        verified: &Done<VerifiedDatablock>,
    ) -> Result<Done<ArchivedDatablock>, TaskError> {
        step::patiently(step::of_datablock(self.ctx, "register_datablocks", verified.name()))
            .input("datablock", verified)
            .run(|task| async move {
                if task.is_cancelled() {
                    return Err(ArchiveError::Cancelled);
                }
                let archived = self.run.register(verified.value.clone()).await?;
                task.info(format!("registered {} as {}", archived.name(), archived.registered().id));
                Ok::<_, ArchiveError>(archived)
            })
            .await
    }

    /// Declares the dataset archived.
    async fn declare(&self) -> Result<(), DatasetError> {
        let archived = LifecycleChange::archived();
        let told = step::patiently(step::of_dataset(self.ctx, LIFECYCLE_TASK, self.dataset()))
            .run(|task| async move {
                if task.is_cancelled() {
                    return Err(ArchiveError::Cancelled);
                }
                Ok(self.site.catalogue.update_lifecycle(self.dataset(), &archived).await?)
            })
            .await;
        match told {
            Ok(_) => Ok(()),
            Err(error) => Err(DatasetError::Declare { dataset: self.dataset().clone(), source: error }),
        }
    }

    /// Deletes what is archived from the landing zone. The dataset is safe whatever happens here, so a failure
    /// is told but fails nothing.
    async fn empty_landing_zone(&self, archived: &[ArchivedDatablock]) {
        let emptied = step::patiently(step::of_dataset(self.ctx, "empty_landing_zone", self.dataset()))
            .run(|task| async move {
                // A job that was cancelled late must still be told its end: no time for many deletions.
                let Ok(released) = task.unless_cancelled(self.run.release(archived)).await else {
                    return Err(ArchiveError::Cancelled);
                };
                let released = released?;
                for kept in released.kept.iter().take(WARNINGS) {
                    task.warn(format!("{} stays in the landing zone: {}", kept.key, kept.reason));
                }
                task.info(format!("{} objects deleted, {} kept", released.deleted, released.kept.len()));
                Ok::<_, ArchiveError>(())
            })
            .await;
        if let Err(error) = emptied {
            self.ctx.warn(format!(
                "{} is archived, but its landing zone could not be emptied; remove the rest by hand: {}",
                self.dataset(),
                chain(&error)
            ));
        }
    }

    /// Undoes what the attempt did and tells the catalogue how it ended. Gives `error` back.
    async fn give_up(
        &self,
        error: DatasetError,
        change: impl Fn(FailureClass) -> LifecycleChange,
    ) -> DatasetError {
        explain(self.ctx, &error);
        let class = error.archive_error().map_or(FailureClass::System, ArchiveError::class);
        let tell = async {
            if error.archive_error().is_some_and(is_anothers) {
                self.ctx.warn(format!("the lifecycle of {} is left to the other run", self.dataset()));
            } else {
                tell_failure(self.ctx, self.site, self.dataset(), change(class)).await;
            }
        };
        match step::undo_and_report(self.run.undo(), self.ctx.cancelled(), tell).await {
            Some(report) => self.tell_undo(&report),
            None => self
                .ctx
                .error("the time for undoing is over: uploads, tars or datablocks of this run may be left"),
        }
        error
    }

    fn tell_undo(&self, report: &UndoReport) {
        let UndoReport { aborted_uploads, deleted_records, deleted_objects, problems, .. } = report;
        self.ctx.info(format!(
            "undone: {aborted_uploads} uploads aborted, {deleted_records} datablocks unregistered, \
             {deleted_objects} tars deleted; the landing zone is untouched"
        ));
        for problem in problems {
            self.ctx.error(format!("not undone: {problem}"));
        }
    }
}

/// Whether a dead run left the dataset half registered: its lifecycle tells of a run at work, which there is not.
/// Datablocks that hold the only copy of a file are those of a run that completed.
fn is_half_done(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::PartlyArchived { only_copies: 0, .. })
}

/// Whether the dataset is in the hands of another run, which has told its fate or will.
fn is_anothers(error: &ArchiveError) -> bool {
    error.already_archived() || matches!(error, ArchiveError::Occupied { .. })
}

/// Tells the catalogue that the dataset was not archived.
async fn tell_failure(ctx: &Context, site: &Site, dataset: &DatasetId, change: LifecycleChange) {
    let task = || step::of_dataset(ctx, LIFECYCLE_TASK, dataset);
    let told = step::report(ctx, task, || site.catalogue.update_lifecycle(dataset, &change)).await;
    if let Err(problem) = told {
        let reason = chain(&problem);
        ctx.error(format!("the lifecycle of {dataset} was not updated: {reason}"));
    }
}

/// Logs what the reader can do about an error.
fn explain(ctx: &Context, error: &DatasetError) {
    if let Some(hint) = error.hint() {
        ctx.error(format!("hint: {hint}"));
    }
}

fn tell_plan(task: &Context, plan: &Plan) {
    for warning in plan.warnings.iter().take(WARNINGS) {
        task.warn(warning);
    }
    if let Some(more @ 1..) = plan.warnings.len().checked_sub(WARNINGS) {
        task.warn(format!("and {more} more warnings of this kind"));
    }
    task.info(format!("{} files go into {} datablocks", plan.files(), plan.datablocks.len()));
}

/// A progress that is logged, for waits that move in few and rare steps.
pub(crate) fn told_by(task: &Context) -> archiver::Progress {
    let task = task.clone();
    archiver::Progress::new(move |update| {
        task.info(format!("{} of {} objects can be read", update.files, update.total_files));
    })
}

/// Bytes in a time, as MiB/s.
fn pace(bytes: u64, elapsed: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{:.1} MiB/s", mebibytes / elapsed.as_secs_f64().max(1e-3))
}
