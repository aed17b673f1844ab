//! Checks from outside, with nothing of ours: the store's listing, the system's `tar`, the user's `bash`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_sdk_s3::Client;
use aws_sdk_s3::types::{RestoreRequest, StorageClass};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::s3::{self, Object};

/// Unpacks every tar below `prefix` into `target` with the system's `tar`, straight from the store.
pub async fn unpack_archive(
    client: &Client,
    bucket: &str,
    prefix: &str,
    target: &Path,
) -> Result<Vec<Object>> {
    let objects = s3::list(client, bucket, prefix).await?;
    ensure!(!objects.is_empty(), "there is nothing below {bucket}/{prefix}");
    for object in &objects {
        unpack(client, bucket, object, target)
            .await
            .with_context(|| format!("failed to unpack {bucket}/{}", object.key))?;
    }
    Ok(objects)
}

/// Asks for a readable copy of an object in an archive class, and waits for it. Others are readable as they are.
async fn make_readable(client: &Client, bucket: &str, key: &str) -> Result<()> {
    let head = || client.head_object().bucket(bucket).key(key).send();
    if !matches!(head().await?.storage_class(), Some(StorageClass::Glacier | StorageClass::DeepArchive)) {
        return Ok(());
    }
    let request = RestoreRequest::builder().days(1).build();
    client.restore_object().bucket(bucket).key(key).restore_request(request).send().await?;
    while !head().await?.restore().is_some_and(|restore| restore.contains("ongoing-request=\"false\"")) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn unpack(client: &Client, bucket: &str, object: &Object, target: &Path) -> Result<()> {
    make_readable(client, bucket, &object.key).await?;
    let mut body = client.get_object().bucket(bucket).key(&object.key).send().await?.body;
    let mut tar = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--directory"])
        .arg(target)
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("failed to start tar")?;
    let mut input = tar.stdin.take().context("tar has no input")?;
    while let Some(bytes) = body.next().await {
        input.write_all(&bytes?).await.context("failed to feed tar")?;
    }
    drop(input);
    let status = tar.wait().await?;
    ensure!(status.success(), "tar ended with {status}");
    Ok(())
}

/// Runs the download script of a job's result in `directory`, as a user would.
pub async fn run_download_script(script: &str, directory: &Path) -> Result<()> {
    let path = directory.join("download.sh");
    tokio::fs::write(&path, script).await?;
    let output = Command::new("bash")
        .arg(&path)
        .current_dir(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("failed to start bash")?;
    let end = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let lines: Vec<_> = text.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    };
    ensure!(
        output.status.success(),
        "the download script ended with {}:\n{}\n{}",
        output.status,
        end(&output.stdout),
        end(&output.stderr)
    );
    tokio::fs::remove_file(&path).await?;
    Ok(())
}
