//! The demo: a directory travels through a Prefect server, a work pool, our worker, containers of our flows and
//! an S3 server into tar datablocks, and back; then all of it is checked from outside.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prefect_api::flow_run::FlowRun;
use prefect_api::state::StateType;
use serde_json::json;
use testkit::docker::Engine;

use crate::containers::{self, MemoryWatch};
use crate::dataset::Dataset;
use crate::local::{archive_prefix, landing_prefix};
use crate::programs::{Programs, project_root};
use crate::stack::{ARCHIVE, LANDING_ZONE, POOLS, Servers, Stack, remove_leftovers};
use crate::summary::{self, Summary};
use crate::{outside, runs, s3};

/// How long one flow run may take.
const RUN: Duration = Duration::from_hours(1);

/// What the demo is asked to do.
#[derive(Debug, Default)]
pub struct Options {
    /// The directory to archive; the files of the checkout if absent.
    pub dataset: Option<PathBuf>,
    /// Wait for the user, with everything running, before it is removed.
    pub keep: bool,
    /// Say nothing on the way.
    pub quiet: bool,
}

/// Runs the demo until its end or until `interrupted` resolves, and leaves nothing behind either way.
pub async fn run(options: &Options, interrupted: impl Future<Output = ()>) -> Result<Summary> {
    let programs = Programs::find()?;
    // Before anything is started: a wrong directory should not cost a minute.
    let dataset = match &options.dataset {
        Some(directory) => Dataset::of_directory(directory)?,
        None => Dataset::of_checkout(project_root())?,
    };
    let engine = Arc::new(Engine::connect().await?);
    let network = engine.name("demo");
    let kept = OnceLock::new();
    let demo = Demo::new(options, &kept);
    let outcome = tokio::select! {
        biased;
        () = interrupted => None,
        outcome = demo.run(&programs, Arc::clone(&engine), &network, &dataset) => Some(outcome),
    };
    // Ctrl-C is how a demo that was kept ends well.
    let outcome =
        outcome.or_else(|| kept.into_inner()).unwrap_or_else(|| Err(anyhow::anyhow!("interrupted")));
    let cleaned = remove_leftovers(&engine, &network).await.context("failed to clean up after the demo");
    let summary = outcome?;
    cleaned?;
    Ok(summary)
}

/// One demo under way: what it says, and what it notes.
struct Demo<'a> {
    options: &'a Options,
    /// The outcome, once everything is done and only kept for the browser.
    kept: &'a OnceLock<Result<Summary>>,
    bar: ProgressBar,
    summary: Summary,
}

impl<'a> Demo<'a> {
    fn new(options: &'a Options, kept: &'a OnceLock<Result<Summary>>) -> Self {
        let target = if options.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { options, kept, bar: ProgressBar::with_draw_target(None, target), summary: Summary::default() }
    }

    async fn run(
        mut self,
        programs: &Programs,
        engine: Arc<Engine>,
        network: &str,
        dataset: &Dataset,
    ) -> Result<Summary> {
        // Everything of this demo carries the name; whoever looks for its containers needs it.
        self.say(&format!("network: {network}"));
        self.summary.files = dataset.files.len();
        self.summary.bytes = dataset.size();
        let servers = self.stage("start the servers", Servers::start(Arc::clone(&engine), network)).await?;
        let tag = engine.name("demo");
        let mut stack = self.stage("build the images", servers.with_images(programs, &tag)).await?;
        self.say(&format!("Prefect's UI: {}", stack.server.run_page("").trim_end_matches("/runs/flow-run/")));
        self.stage("bootstrap", stack.bootstrap()).await?;
        for pool in POOLS {
            self.stage(&format!("start a worker of {pool}"), stack.start_worker(pool)).await?;
        }
        let memory = MemoryWatch::start(Arc::clone(&engine), network.to_owned());
        let outcome = Box::pin(self.travel(&stack, dataset, &memory)).await;
        if let Err(error) = &outcome {
            self.say(&format!("the demo failed: {error:#}\nthe worker says:\n{}", stack.worker_log().await));
        }
        if self.options.keep {
            self.bar.finish_and_clear();
            let text = self.summary.text();
            crate::say(&format!("{text}\nEverything is running. Press Ctrl-C to end and remove it."));
            self.summary.ok = outcome.is_ok();
            // Nobody else sets it.
            drop(self.kept.set(outcome.map(|()| self.summary)));
            return std::future::pending().await;
        }
        outcome?;
        drop(memory);
        let leftovers = remove_leftovers(&engine, network);
        self.stage("stop everything", Box::pin(async { tokio::try_join!(stack.stop(), leftovers) })).await?;
        self.summary.ok = true;
        self.bar.finish_and_clear();
        Ok(self.summary)
    }

    /// The way of the dataset: landing zone, archive, back.
    async fn travel(&mut self, stack: &Stack, dataset: &Dataset, memory: &MemoryWatch) -> Result<()> {
        let client = s3::client(&stack.s3.endpoint(), stack.s3.access_key(), stack.s3.secret_key());
        let catalogue = stack.scicat.catalogue();
        let pid = format!("20.500.12345/{}", uuid::Uuid::new_v4());
        self.summary.dataset.clone_from(&pid);
        catalogue.create_dataset(&pid);
        catalogue.add_origdatablock(&pid, &dataset.claims());
        let (landing, archive) = (landing_prefix(&pid), archive_prefix(&pid));

        self.bytes_of("upload the dataset", dataset.size());
        let bar = self.bar.clone();
        let upload = dataset.upload(&client, LANDING_ZONE, &landing, |bytes| bar.inc(bytes));
        self.stage("upload the dataset", upload).await?;

        let job = catalogue.create_job("archive", &[&pid]);
        let run = self.flow_run(stack, memory, "archive_datasetlist", "datasets_archival", &job).await?;
        self.finished(stack, &job, &run).await?;
        let left = s3::list(&client, LANDING_ZONE, &landing).await?;
        ensure!(left.is_empty(), "{} object(s) are still in the landing zone", left.len());

        let unpacked = tempfile::Builder::new().prefix("ferryman-demo-").tempdir()?;
        let stored = outside::unpack_archive(&client, ARCHIVE, &archive, unpacked.path());
        let stored = self.stage("unpack the archive with tar", Box::pin(stored)).await?;
        self.stage("compare with the original", async { dataset.compare(unpacked.path()) }).await?;
        let block = |object: s3::Object| summary::Datablock { key: object.key, bytes: object.size };
        self.summary.datablocks = stored.into_iter().map(block).collect();
        ensure!(
            catalogue.datablocks(&pid).len() == self.summary.datablocks.len(),
            "the catalogue knows {} datablocks and the archive holds {}",
            catalogue.datablocks(&pid).len(),
            self.summary.datablocks.len()
        );
        drop(unpacked);
        // What we restored to look at it is no help for the retrieval.
        stack.s3.store().expire_restores();

        let job = catalogue.create_job("retrieve", &[&pid]);
        let run = self.flow_run(stack, memory, "retrieve_datasetlist", "datasets_retrieval", &job).await?;
        self.finished(stack, &job, &run).await?;
        let script = download_script(stack, &job)?;
        let downloads = tempfile::Builder::new().prefix("ferryman-demo-").tempdir()?;
        let script = outside::run_download_script(&script, downloads.path());
        self.stage("run the download script", script).await?;
        remove_tars(downloads.path())?;
        self.stage("compare with the original again", async { dataset.compare(downloads.path()) }).await
    }

    /// Triggers a run as SciCat's side does, and waits for its end.
    async fn flow_run(
        &mut self,
        stack: &Stack,
        memory: &MemoryWatch,
        flow: &str,
        deployment: &str,
        job: &str,
    ) -> Result<FlowRun> {
        let run = runs::trigger(&stack.prefect, flow, deployment, json!({"job_id": job})).await?;
        let link = stack.server.run_page(run.id);
        self.say(&format!("{flow}/{deployment}: {link}"));
        let bar = self.bar.clone();
        let ended = runs::wait(&stack.prefect, run.id, RUN, |run| {
            bar.set_message(format!("{flow}: {}", run.state_name.as_deref().unwrap_or("?")));
        });
        let ended = self.stage(flow, ended).await?;
        let docker = stack.engine.api();
        let ids = containers::of_run(docker, run.id).await?;
        let [container] = ids.as_slice() else {
            bail!("the run {} has {} containers", ended.name, ids.len())
        };
        let resident_bytes = memory.peak(container);
        let scratch_files = containers::scratch_files(docker, container).await?;
        let subflows = runs::subflows(&stack.prefect, run.id).await?;
        self.summary.runs.push(summary::Run {
            id: run.id.to_string(),
            name: ended.name.clone(),
            link,
            states: runs::states(&stack.prefect, run.id).await?,
            subflows: subflows.into_iter().map(|subflow| subflow.name).collect(),
            resident_bytes,
            scratch_files,
        });
        Ok(ended)
    }

    async fn finished(&mut self, stack: &Stack, job: &str, run: &FlowRun) -> Result<()> {
        if run.state_type != Some(StateType::Completed) {
            bail!("{}", runs::explain(&stack.prefect, run).await);
        }
        let job = stack.scicat.catalogue().job(job).context("the catalogue has lost the job")?;
        let status =
            job.get("statusMessage").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        self.summary.jobs.push(status.clone());
        ensure!(status == "finishedSuccessful", "the SciCat job says {status:?}");
        Ok(())
    }

    /// Does one stage, with its name at the terminal and its duration in the summary.
    async fn stage<T, E: Into<anyhow::Error>>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        self.bar.set_message(name.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(200));
        let started = Instant::now();
        let outcome = work.await;
        let seconds = started.elapsed().as_secs_f64();
        self.bar.unset_length();
        self.bar.set_style(ProgressStyle::default_spinner());
        self.say(&format!("{seconds:>7.1} s  {name}"));
        self.summary.stages.push(summary::Stage { name: name.to_owned(), seconds });
        outcome.map_err(Into::into).with_context(|| format!("failed to {name}"))
    }

    /// The next stage moves this many bytes.
    fn bytes_of(&self, name: &str, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_position(0);
        self.bar.set_message(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}") {
            self.bar.set_style(style);
        }
    }

    fn say(&self, text: &str) {
        if self.options.quiet {
            return;
        }
        // Without a terminal a hidden bar would swallow the line.
        self.bar.suspend(|| crate::say(text));
    }
}

fn download_script(stack: &Stack, job: &str) -> Result<String> {
    let job = stack.scicat.catalogue().job(job).context("the catalogue has lost the job")?;
    let encoded = job.pointer("/jobResultObject/downloadScript").and_then(serde_json::Value::as_str);
    let encoded = encoded.context("the job's result has no download script")?;
    let script = base64::engine::general_purpose::STANDARD.decode(encoded)?;
    String::from_utf8(script).context("the download script is no text")
}

/// The script leaves the tars beside what it unpacked; the dataset is the rest.
fn remove_tars(directory: &std::path::Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_some_and(|extension| extension == "tar") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
