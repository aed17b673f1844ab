//! A plain S3 client: the ingestor that fills the landing zone, and the auditor that reads the archive.

use anyhow::{Context as _, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};

/// One object of a listing.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
}

/// A client of the S3 server at `endpoint`, with the SDK's own defaults, checksums included.
pub fn client(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "ferryman demo"))
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

/// All objects below `prefix`.
pub async fn list(client: &Client, bucket: &str, prefix: &str) -> Result<Vec<Object>> {
    let mut pages = client.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
    let mut objects = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.with_context(|| format!("failed to list {bucket}/{prefix}"))?;
        for object in page.contents() {
            let key = object.key().context("the store listed an object without a key")?.to_owned();
            objects.push(Object { key, size: u64::try_from(object.size().unwrap_or_default())? });
        }
    }
    Ok(objects)
}
