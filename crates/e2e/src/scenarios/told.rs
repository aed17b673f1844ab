//! Flows that tell and read records: the twins of `told.py`.

use std::collections::BTreeMap;

use prefect_flow::{BoxError, Context, Event, Flow, Program, Resource};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::Nothing;

pub(super) fn add(program: Program) -> Program {
    program
        .flow(Flow::new("artifacts", artifacts))
        .flow(Flow::new("logs", logs))
        .flow(Flow::new("records", records))
        .flow(Flow::new("events", events))
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    size: u64,
}

async fn artifacts(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    ctx.markdown("markdown", "# Title", Some("Text.")).await?;
    ctx.link("link", "https://example.org/a b", "here", None).await?;
    ctx.image("image", "https://example.org/a.png", None).await?;
    let progress = ctx.progress("progress", None)?;
    progress.set(100.0);
    let report = |task: Context| async move {
        task.table("table", &[Row { name: "a", size: 1 }], Some("Of a task.")).await
    };
    ctx.task("report").run(report).await?;
    Ok(())
}

async fn logs(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    ctx.debug("debug");
    ctx.info("info");
    ctx.warn("warning");
    ctx.error("error");
    let tell = |task: Context| async move {
        task.debug("a task's debug");
        task.info("a task's info\nin two lines");
        task.warn("a task's warning");
        task.error("a task's error");
        Ok::<_, BoxError>(())
    };
    ctx.task("tell").run(tell).await?;
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Object {
    size: u64,
}

async fn records(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    ctx.info(ctx.variable::<String>("text").await?.unwrap_or_default());
    ctx.info(ctx.variable::<Object>("object").await?.map_or(0, |object| object.size));
    ctx.info(if ctx.variable::<BTreeMap<String, u64>>("missing").await?.is_none() { "None" } else { "some" });
    ctx.info(ctx.secret("password").await?.expose_secret().len());
    ctx.info(ctx.block::<Secret>("secret/password").await?.value.len());
    Ok(())
}

/// The fields of a Secret block.
#[derive(Deserialize)]
struct Secret {
    value: String,
}

async fn events(ctx: Context, _: Nothing) -> Result<(), BoxError> {
    let dataset = || Resource::new("dataset.7");
    let arrived = Event::now("dataset.arrived", dataset())
        .related([Resource::new("tape.3").role("tape")])
        .with("files", 2);
    ctx.emit_event(arrived).await?;
    let measure = |task: Context| async move {
        task.emit_event(Event::now("dataset.measured", dataset().named("seven")).with("size", 3)).await
    };
    ctx.task("measure").tag("measuring").run(measure).await?;
    Ok(())
}
