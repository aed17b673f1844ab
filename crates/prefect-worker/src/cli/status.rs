//! `prefect-worker status`.

use clap::Args;
use jiff::Timestamp;

use super::print;
use super::text::{age, line};
use crate::control;
use crate::error::Error;
use crate::status::{PoolStatus, Status};

/// Shows what the workers on this machine, or in this container, are doing.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only the worker of this name.
    #[arg(short, long)]
    name: Option<String>,
    /// One JSON object per worker, one per line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Error> {
    let found = control::find(arguments.name.as_deref(), &super::environment).await?;
    let mut text = String::new();
    for chosen in &found {
        if arguments.json {
            text.push_str(&serde_json::to_string(&chosen.status).unwrap_or_default());
            text.push('\n');
        } else {
            describe(&chosen.status, &mut text);
        }
    }
    print(&text);
    Ok(())
}

fn describe(status: &Status, text: &mut String) {
    let up = age(status.taken_at, status.started_at);
    let Status { worker, version, state, pid, .. } = status;
    line(
        text,
        format_args!("worker {worker:?}: {}, for {up}, version {version}, process {pid}", state.name()),
    );
    let server = status.server_version.as_deref().unwrap_or("unknown");
    line(text, format_args!("  API     {}, Prefect {server}", status.api_url));
    match &status.engine {
        Some(engine) => line(text, format_args!("  engine  {}, version {}", engine.address, engine.version)),
        None if status.pools.iter().all(|pool| pool.kind.as_deref() == Some("process")) => {}
        None => line(text, format_args!("  engine  has not answered")),
    }
    let dead: Vec<&str> =
        status.loops.iter().filter(|entry| !entry.alive).map(|entry| entry.name.as_str()).collect();
    if !dead.is_empty() {
        line(text, format_args!("  loops   ended or stuck: {}", dead.join(", ")));
    }
    if status.reports_waiting > 0 {
        line(text, format_args!("  reports {} wait for the server", status.reports_waiting));
    }
    for pool in &status.pools {
        describe_pool(pool, status.taken_at, text);
    }
}

fn describe_pool(pool: &PoolStatus, now: Timestamp, text: &mut String) {
    let mut facts = vec![pool.kind.clone().unwrap_or_else(|| "type unknown".to_owned())];
    match pool.limit {
        Some(limit) => facts.push(format!("{} of {limit} slots used", pool.runs.len())),
        None => facts.push(format!("{} runs", pool.runs.len())),
    }
    facts.push(format!("polled {:.0} s ago", pool.last_poll_age_seconds));
    facts.push(if pool.events_connected { "events connected" } else { "no events" }.to_owned());
    facts.push(if pool.channel_connected { "channel connected" } else { "over REST" }.to_owned());
    facts.extend(pool.paused.then(|| "paused".to_owned()));
    facts.extend(pool.template_drift.then(|| "template differs from ours".to_owned()));
    line(text, format_args!("  pool {:?}: {}", pool.name, facts.join(", ")));
    for run in &pool.runs {
        let infrastructure = run.infrastructure.as_deref().unwrap_or("-");
        let since = age(now, run.since);
        line(
            text,
            format_args!("    {} {:?} {} for {since}, {infrastructure}", run.id, run.name, run.phase.name()),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::SignedDuration;

    use super::*;
    use crate::status::{Engine, RunPhase, State, StatusBoard};

    #[tokio::test]
    async fn a_status_reads_well() {
        let board = StatusBoard::new("w", "http://h/api");
        board.set_state(State::Draining);
        board.set_server_version("3.7.2");
        board.set_engine(&Engine {
            address: "unix:///var/run/docker.sock".to_owned(),
            version: "28.2.2".to_owned(),
        });
        let _waiting = (board.report_waits(), board.report_waits());
        drop(board.enter_loop("poller", None));
        let pool = board.pool("p", Duration::from_secs(10));
        pool.set_limit(Some(3));
        pool.set_events_connected(true);
        let run = pool.run(uuid::Uuid::nil().into(), "crow", RunPhase::Running);
        run.set_infrastructure("crow-1");
        let mut status = board.snapshot();
        (status.pid, status.version) = (7, "1.2.3".to_owned());
        status.started_at = status.taken_at - SignedDuration::from_secs(3700);
        let mut text = String::new();
        describe(&status, &mut text);
        insta::assert_snapshot!(text, @r#"
        worker "w": draining, for 1 h 1 min, version 1.2.3, process 7
          API     http://h/api, Prefect 3.7.2
          engine  unix:///var/run/docker.sock, version 28.2.2
          loops   ended or stuck: poller
          reports 2 wait for the server
          pool "p": type unknown, 1 of 3 slots used, polled 0 s ago, events connected, over REST
            00000000-0000-0000-0000-000000000000 "crow" running for 0 s, crow-1
        "#);
    }
}
