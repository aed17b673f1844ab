//! How fast a server is told of task runs.

use std::time::Duration;

use super::{Bench, greet};
use crate::engine::End;
use crate::error::BoxError;
use crate::{Context, Flow};

/// More than may be under way: three events for each.
const MANY: usize = 1_500;
const FEW: usize = 1_000;

/// A flow of so many tasks.
fn tasks(count: usize) -> Flow<super::Greeting> {
    greet(move |ctx: Context, _| async move {
        for task in ctx.task("nothing").map(0..count, |_, _| async { Ok::<_, BoxError>(()) }) {
            task.await?;
        }
        Ok(())
    })
}

const LOOK: &str = "/task_runs/filter";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_records_slowly_is_waited_for() {
    let bench = Bench::new().await;
    bench.fake.lock().recorded = Some(0);
    let (end, ()) = tokio::join!(bench.execute(tasks(MANY)), async {
        bench.fake.until(|inner| inner.calls_to("POST", LOOK).len() > 1).await;
        let mut inner = bench.fake.lock();
        assert!(inner.task_states().len() <= 4_000, "{} events", inner.task_states().len());
        inner.recorded = None;
    });
    assert!(matches!(end.unwrap(), End::Completed(_)));
    assert_eq!(bench.fake.lock().task_states().len(), 3 * MANY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_records_nothing_is_not_waited_for_without_end() {
    let bench = Bench::with(|options| options.standstill = Duration::from_millis(1)).await;
    bench.fake.lock().recorded = Some(0);
    assert!(matches!(bench.execute(tasks(MANY)).await.unwrap(), End::Completed(_)));
    assert_eq!(bench.fake.lock().task_states().len(), 3 * MANY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_flow_does_not_wait_for_the_server() {
    let bench = Bench::with(|options| {
        (options.standstill, options.cancel_grace) = (Duration::from_hours(1), Duration::from_hours(1));
    })
    .await;
    bench.fake.lock().recorded = Some(0);
    let (end, ()) = tokio::join!(bench.execute(tasks(MANY)), async {
        bench.fake.until(|inner| !inner.calls_to("POST", LOOK).is_empty()).await;
        bench.cancel();
    });
    assert!(matches!(end.unwrap(), End::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_not_asked_about_few_tasks() {
    let bench = Bench::new().await;
    assert!(matches!(bench.execute(tasks(FEW)).await.unwrap(), End::Completed(_)));
    let inner = bench.fake.lock();
    assert_eq!(inner.task_states().len(), 3 * FEW);
    assert!(inner.calls_to("POST", LOOK).is_empty());
}
