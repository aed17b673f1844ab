//! CPU and time of archiving one GiB: our whole archival run, Prefect and catalogue included, beside the bare
//! transfers of the Python archiver (`peer/archive.py` says what is in them).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testkit::process::Command;

use super::{Bench, Figure, cpu};
use crate::dataset::Dataset;
use crate::local::Local;
use crate::programs::project_root;
use crate::stack::{ARCHIVE, LANDING_ZONE};

/// Files of the dataset, and bytes of each: 1 GiB together.
const FILES: usize = 64;
const FILE_SIZE: usize = 16 << 20;

pub(super) async fn measure(_: &Bench) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let dataset = make_dataset(folder.path())?;
    let local = Local::start().await?;
    let ours = ours(&local, &dataset).await.context("failed to archive with our flow")?;
    let peer = peer(&local, &dataset).await.context("failed to archive with the Python transfers")?;
    local.stop().await?;
    Ok(vec![
        Figure::new("archive 1 GiB: CPU", ours.1, peer.1, "s"),
        Figure::new("archive 1 GiB: time", ours.0, peer.0, "s"),
    ])
}

/// Bytes that no file system or tar can shorten.
fn make_dataset(folder: &Path) -> Result<Dataset> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = vec![0; FILE_SIZE];
    for number in 0..FILES {
        for chunk in bytes.chunks_mut(8) {
            // xorshift64: any stream without repetition will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        std::fs::write(folder.join(format!("frame_{number:04}.bin")), &bytes)?;
    }
    Dataset::of_directory(folder)
}

/// Seconds and CPU seconds of our archival run.
async fn ours(local: &Local, dataset: &Dataset) -> Result<(f64, f64)> {
    let pid = "20.500.12345/measured";
    local.ingest(pid, dataset).await?;
    let (cpu, started) = (cpu::of_children()?, Instant::now());
    let (output, job) = local.run("archive_datasetlist", "archive", pid).await?;
    let figures = (started.elapsed().as_secs_f64(), cpu::of_children()? - cpu);
    ensure!(job["statusMessage"] == "finishedSuccessful", "the job is {job}\n{}", output.stderr);
    Ok(figures)
}

/// Seconds and CPU seconds of the Python transfers, in an environment of their own.
async fn peer(local: &Local, dataset: &Dataset) -> Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let environment = folder.path().join("venv");
    let python = environment.join("bin/python");
    let limit = Duration::from_mins(5);
    Command::new("python3").args(["-m", "venv"]).arg(&environment).output(limit).await?.success()?;
    let pip = ["-m", "pip", "install", "--quiet", "boto3==1.44.5"];
    Command::new(&python).args(pip).output(limit).await?.success()?;
    let s3 = &local.s3;
    dataset.upload(&local.s3_client(), LANDING_ZONE, "peer/raw_files", |_| {}).await?;
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch)?;
    let (cpu, started) = (cpu::of_children()?, Instant::now());
    Command::new(&python)
        .arg(project_root().join("crates/e2e/peer/archive.py"))
        .args([s3.endpoint().as_str(), LANDING_ZONE, ARCHIVE, "peer/raw_files", "peer/datablocks"])
        .arg(&scratch)
        .env("S3_USER", s3.access_key())
        .env("S3_PASSWORD", s3.secret_key())
        .output(Duration::from_mins(10))
        .await?
        .success()?;
    Ok((started.elapsed().as_secs_f64(), cpu::of_children()? - cpu))
}
