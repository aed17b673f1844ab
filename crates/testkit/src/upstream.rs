//! The HTTP server behind a gate of ours: requests go on to it as they came, and its answers come back.

use anyhow::{Context, Result};
use axum::extract::Request;
use axum::http::header;

/// A server behind a gate. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    client: reqwest::Client,
    url: String,
}

impl Upstream {
    /// The server at `url`, which has no path.
    pub(crate) fn new(url: impl Into<String>) -> Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A connection that the server is just closing would look like a fault of ours.
            .pool_max_idle_per_host(0);
        Ok(Self { client: client.build().context("failed to make an HTTP client")?, url: url.into() })
    }

    /// The client that is used, for what is asked besides.
    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// The server's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Passes a request on; gives the answer's head, with the body still to come.
    pub(crate) async fn forward(&self, request: Request) -> reqwest::Result<reqwest::Response> {
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let url = format!("{}{target}", self.url);
        let body = reqwest::Body::wrap_stream(body.into_data_stream());
        let mut forwarded = self.client.request(parts.method, url).headers(parts.headers.clone());
        // A stream has no length of its own: without the header it would be chunked even where there is none.
        if parts.headers.contains_key(header::CONTENT_LENGTH)
            || parts.headers.contains_key(header::TRANSFER_ENCODING)
        {
            forwarded = forwarded.body(body);
        }
        forwarded.send().await
    }
}
