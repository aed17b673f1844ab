//! The steps of the flows: their names in the run page, when one is tried again, and how one still reports while
//! the run is being cancelled.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use archiver::{ArchiveError, CatalogueError, DatasetId, JobId, RetrieveError};
use prefect_flow::{BoxError, Context, Task, TaskError, chain};
use tokio::time::{sleep, timeout};

use crate::other_runs::NotAlone;

/// Attempts after the first of such a step.
const RETRIES: u32 = 4;

/// Waits between attempts of a step that the catalogue or the store could not serve. The adapters retry for some
/// seconds by themselves; this bridges a restart of the other side, since what would have to be undone may be
/// the work of hours.
const DELAYS: [Duration; RETRIES as usize] =
    [Duration::from_secs(2), Duration::from_secs(15), Duration::from_mins(1), Duration::from_mins(3)];

/// What a single report may take while the run is being cancelled: a flow has half a minute to end, and a job
/// waits for two reports and the undoing of a dataset.
const HASTE: Duration = Duration::from_secs(6);

/// What undoing may take from the moment of the cancellation before the report no longer waits for it.
const UNDO_IN_HASTE: Duration = Duration::from_secs(12);

/// A step of a job.
pub(crate) fn of_job(ctx: &Context, name: &'static str, job: JobId) -> Task {
    ctx.task(name).run_name(format!("{name}-job_id-{job}"))
}

/// A step of a dataset.
pub(crate) fn of_dataset(ctx: &Context, name: &'static str, dataset: &DatasetId) -> Task {
    ctx.task(name).run_name(format!("{name}-dataset_id-{dataset}"))
}

/// A step of a datablock.
pub(crate) fn of_datablock(ctx: &Context, name: &'static str, tar: &str) -> Task {
    ctx.task(name).run_name(format!("{name}-datablock_id-{tar}"))
}

/// The same step, tried again while the other side is away.
pub(crate) fn patiently(task: Task) -> Task {
    task.retries(RETRIES, DELAYS).retry_if(is_transient)
}

fn is_transient(error: &BoxError) -> bool {
    if let Some(error) = error.downcast_ref::<ArchiveError>() {
        return error.is_transient();
    }
    if let Some(error) = error.downcast_ref::<RetrieveError>() {
        return error.is_transient();
    }
    if let Some(error) = error.downcast_ref::<NotAlone>() {
        return error.is_transient();
    }
    error.downcast_ref::<CatalogueError>().is_some_and(CatalogueError::is_transient)
}

/// Tells the catalogue something that it must know even of a run that is being cancelled: then once and in haste.
pub(crate) async fn report<C, R>(ctx: &Context, task: impl Fn() -> Task, call: C) -> Result<(), TaskError>
where
    C: Fn() -> R,
    R: Future<Output = Result<(), CatalogueError>>,
{
    if !ctx.is_cancelled() {
        let told = patiently(task()).run(|_task| call()).await;
        // A cancellation in between ends the patience, not the duty.
        if told.is_ok() || !ctx.is_cancelled() {
            return told.map(|_| ());
        }
    }
    task().timeout(HASTE).run(|_task| call()).await.map(|_| ())
}

/// Undoes, then reports. Undoing begins once and cannot be taken up again, so it goes to its end, however long it
/// takes, unless the run is cancelled: then the report is made beside it when time gets short, and what is not undone
/// by then is dropped. Gives `None` in that case.
pub(crate) async fn undo_and_report<R>(
    undo: impl Future<Output = R>,
    cancelled: impl Future<Output = ()>,
    report: impl Future<Output = ()>,
) -> Option<R> {
    let mut undo = pin!(undo);
    let short_of_time = async {
        cancelled.await;
        sleep(UNDO_IN_HASTE).await;
    };
    tokio::select! {
        biased;
        undone = &mut undo => {
            report.await;
            Some(undone)
        }
        () = short_of_time => tokio::join!(timeout(HASTE, undo), report).0.ok(),
    }
}

/// The causes of an error in one line, without the error itself, which only says where it happened.
pub(crate) fn inner_chain(error: &(dyn Error + 'static)) -> String {
    chain(error.source().unwrap_or(error))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn unavailable() -> CatalogueError {
        CatalogueError::Unavailable { action: "read job 1".to_owned(), source: "connection refused".into() }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let denied = CatalogueError::Denied { action: "read job 1".to_owned(), message: "no".to_owned() };
        assert!(is_transient(&unavailable().into()));
        assert!(is_transient(&ArchiveError::Catalogue(unavailable()).into()));
        assert!(is_transient(&RetrieveError::Catalogue(unavailable()).into()));
        assert!(!is_transient(&denied.into()));
        assert!(!is_transient(&ArchiveError::Cancelled.into()));
        assert!(!is_transient(&"anything else".into()));
    }

    /// Undoes for `undo` seconds in a run that is cancelled at second `cancelled`. Gives the second of the report and
    /// whether all was undone.
    async fn ending(undo: u64, cancelled: u64) -> (u64, bool) {
        let begun = Instant::now();
        let mut reported = None;
        let undone =
            undo_and_report(sleep(Duration::from_secs(undo)), sleep(Duration::from_secs(cancelled)), async {
                reported = Some(begun.elapsed().as_secs());
            })
            .await;
        (reported.unwrap(), undone.is_some())
    }

    #[tokio::test(start_paused = true)]
    async fn undoing_ends_before_the_report_unless_a_cancelled_run_is_short_of_time() {
        assert_eq!(ending(10_000, 20_000).await, (10_000, true));
        assert_eq!(ending(5, 0).await, (5, true));
        assert_eq!(ending(105, 100).await, (105, true));
        assert_eq!(ending(115, 100).await, (112, true));
        assert_eq!(ending(1000, 100).await, (112, false));
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        assert_eq!(
            chain(&ArchiveError::Catalogue(unavailable())),
            "read job 1: the catalogue is not available: connection refused"
        );
    }
}
