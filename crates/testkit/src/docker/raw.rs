//! Answers of the engine as it gives them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_mins(1);

/// Reads `path` of the API of the engine at `host`; `None` if there is no such thing.
pub(super) async fn get(host: &str, path: &str) -> Result<Option<Value>> {
    let builder = reqwest::Client::builder().no_proxy().timeout(DEADLINE);
    let (builder, base) = match host.split_once("://") {
        Some(("unix", socket)) => (builder.unix_socket(socket), "http://docker".to_owned()),
        Some(("tcp" | "http", address)) => (builder, format!("http://{}", address.trim_end_matches('/'))),
        _ => bail!("the engine's address {host} is neither a socket nor plain TCP"),
    };
    let client = builder.build().context("failed to make an HTTP client")?;
    let reply = client.get(format!("{base}/{path}")).send().await;
    let reply = reply.with_context(|| format!("failed to read {path} of the engine"))?;
    if reply.status() == reqwest::StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let reply = reply.error_for_status().with_context(|| format!("the engine refused to tell {path}"))?;
    Ok(Some(reply.json().await.with_context(|| format!("the engine's answer to {path} is no JSON"))?))
}
