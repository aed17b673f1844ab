//! What the worker tells over HTTP: `/livez`, `/readyz`, `/health` and `/metrics`.

use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::health::{Health, Report};
use crate::metrics::Metrics;

/// What scrapers are told the text is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens; an address that is taken is told at once.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Health { address, source })
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, health: Health, metrics: Metrics, stop: CancellationToken) {
    let served = axum::serve(listener, router(health, metrics));
    if let Err(error) = served.with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "the health server ended");
    }
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(async |State(health): State<Health>| told(health.live())))
        .route("/readyz", get(async |State(health): State<Health>| told(health.ready().await)))
        .route("/health", get(async |State(health): State<Health>| pythons(&health.polling())))
        .with_state(health)
        .merge(Router::new().route("/metrics", get(figures)).with_state(metrics))
}

fn told(report: Report) -> (StatusCode, Json<Report>) {
    (status(&report), Json(report))
}

/// The answer of the Python worker, word by word.
fn pythons(report: &Report) -> (StatusCode, Json<Value>) {
    let message = if report.ok { "OK" } else { "Worker may be unresponsive at this time" };
    (status(report), Json(json!({"message": message})))
}

const fn status(report: &Report) -> StatusCode {
    if report.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn figures(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics were not written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
