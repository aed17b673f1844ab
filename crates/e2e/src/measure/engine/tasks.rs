//! A flow of very many tasks that do nothing: how many a second, and what each costs the engine and the server.
//!
//! Tasks are reported by events, which the server takes faster than it records them; what it has no room for it drops. A run
//! has come through only when all of its task runs are recorded as Completed. If one of ours is not, that is no measurement
//! but an error.

use std::time::Duration;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Site;
use crate::measure::{Bench, Figure, Side};
use crate::say;

/// Tasks in a flow, unless another number is asked for.
const TASKS: [usize; 2] = [1_000, 10_000];
/// Tasks of a run before, which is for warm-up.
const WARM_UP: usize = 20;
/// Time between looks at the records.
const LOOK: Duration = Duration::from_millis(250);
/// When nothing has been recorded for so long, nothing will.
const STANDSTILL: Duration = Duration::from_mins(1);

/// How one flow went.
struct Burst {
    /// Tasks a second, from Running to Completed.
    rate: f64,
    /// Task runs a second, from Running until all were recorded that ever were.
    recorded: f64,
    /// CPU milliseconds of the engine, for each task.
    engine: f64,
    /// CPU milliseconds of the server, for each task.
    server: f64,
    /// MiB.
    memory: f64,
    requests: f64,
    /// Task runs that the server does not hold as Completed.
    lost: f64,
}

pub(in crate::measure) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let counts = bench.options.tasks.map_or_else(|| TASKS.to_vec(), |tasks| vec![tasks]);
    let mut figures = Vec::new();
    for count in counts {
        let ours = burst(bench, Side::Ours, count).await?;
        let peer = burst(bench, Side::Peer, count).await?;
        let figure = |name: &str, of: fn(&Burst) -> f64, unit| {
            Figure::new(&format!("{count} tasks: {name}"), of(&ours), of(&peer), unit)
        };
        figures.extend([
            figure("tasks a second", |burst| burst.rate, ""),
            figure("tasks a second, until recorded", |burst| burst.recorded, ""),
            figure("CPU of the engine a task", |burst| burst.engine, "ms"),
            figure("CPU of the server a task", |burst| burst.server, "ms"),
            figure("resident memory", |burst| burst.memory, "MiB"),
            figure("HTTP requests", |burst| burst.requests, ""),
            figure("lost", |burst| burst.lost, ""),
        ]);
    }
    Ok(figures)
}

/// One flow on a server of its own.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
async fn burst(bench: &Bench, whose: Side, count: usize) -> Result<Burst> {
    let site = Site::start(bench).await?;
    let runner = site.runner(bench, whose, "many").await?;
    let warm_up = runner.execute(json!({"tasks": WARM_UP})).await?;
    let (completed, _) = site.recorded(warm_up.run, WARM_UP).await?;
    ensure!(completed == WARM_UP, "the server holds {completed} of {WARM_UP} task runs");
    let before = site.cpu_at_rest().await?;
    let execution = runner.execute(json!({"tasks": count})).await?;
    let seconds = |until: Timestamp| until.duration_since(execution.running).as_secs_f64();
    say(&format!("{whose:?}: {count} tasks in {:.0} s", seconds(execution.completed)));
    let (completed, recorded) = site.recorded(execution.run, count).await?;
    say(&format!("{whose:?}: {completed} of them recorded in {:.0} s", seconds(recorded)));
    ensure!(whose == Side::Peer || completed == count, "the server holds {completed} of {count} task runs");
    let server = site.cpu_at_rest().await? - before;
    site.server.stop().await?;
    let (lost, completed, count) = ((count - completed) as f64, completed as f64, count as f64);
    Ok(Burst {
        rate: count / seconds(execution.completed),
        recorded: completed / seconds(recorded),
        engine: 1e3 * execution.cpu / count,
        server: 1e3 * server / count,
        memory: execution.memory,
        requests: execution.traffic.total() as f64,
        lost,
    })
}

impl Site {
    /// Waits until so many task runs of a flow run are recorded as Completed, or none is any more; gives how many are, and
    /// since when, as far as it was looked at.
    async fn recorded(&self, run: FlowRunId, count: usize) -> Result<(usize, Timestamp)> {
        let of_run = json!({"task_runs": {
            "flow_run_id": {"any_": [run]},
            "state": {"type": {"any_": ["COMPLETED"]}},
        }});
        let (mut last, mut when, mut since) = (0, Timestamp::now(), Instant::now());
        loop {
            let completed = self.rest.post("/task_runs/count", &of_run).await?;
            let completed = usize::try_from(completed.as_u64().unwrap_or_default())?;
            if completed != last {
                (last, when, since) = (completed, Timestamp::now(), Instant::now());
            }
            if completed >= count || since.elapsed() > STANDSTILL {
                return Ok((last, when));
            }
            sleep(LOOK).await;
        }
    }
}
