//! The server's records as they are, for whoever compares them: JSON in, JSON out, nothing typed or dropped.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::StatusCode;
use serde_json::Value;

use super::server::PrefectServer;

/// How long one call may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// A server on SQLite that is busy says 503. It is asked again so often, after a pause.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);

/// A plain client of one server's API.
#[derive(Clone, Debug)]
pub struct Rest {
    http: reqwest::Client,
    api_url: String,
}

impl Rest {
    /// A client of a server that wants no credentials.
    pub fn new(server: &PrefectServer) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(DEADLINE);
        let http = http.build().context("failed to make an HTTP client")?;
        Ok(Self { http, api_url: server.api_url() })
    }

    /// What is at `path`, which begins with a slash.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.answer(path, self.http.get(format!("{}{path}", self.api_url))).await
    }

    /// The answer to `body`; null if there is none.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.answer(path, self.http.post(format!("{}{path}", self.api_url)).json(body)).await
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Value> {
        let mut tries = 0;
        let reply = loop {
            let again = request.try_clone().context("a body that cannot be sent twice")?;
            let reply = again.send().await.with_context(|| format!("failed to call {path}"))?;
            tries += 1;
            if reply.status() != StatusCode::SERVICE_UNAVAILABLE || tries == TRIES {
                break reply;
            }
            tokio::time::sleep(PAUSE).await;
        };
        let status = reply.status();
        let text = reply.text().await.with_context(|| format!("failed to read the answer to {path}"))?;
        if !status.is_success() {
            bail!("{path} says {status}: {text}");
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("the answer to {path} is no JSON"))
    }
}
