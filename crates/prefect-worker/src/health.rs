//! `GET /health`: whether the worker still polls.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Polls that may be missed before the worker counts as ill.
const MISSED_POLLS: u32 = 30;

/// Listens; an address that is taken is told at once.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Health { address, source })
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    last_poll: watch::Receiver<Instant>,
    query: Duration,
    stop: CancellationToken,
) {
    let answer = move || {
        let age = last_poll.borrow().elapsed();
        std::future::ready(status(age, query))
    };
    let router = Router::new().route("/health", get(answer));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the health server ended");
    }
}

fn status(age: Duration, query: Duration) -> (StatusCode, Json<Value>) {
    if age <= query * MISSED_POLLS {
        (StatusCode::OK, Json(json!({"message": "OK"})))
    } else {
        let message = "Worker may be unresponsive at this time";
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"message": message})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_ends_after_thirty_missed_polls() {
        let query = Duration::from_secs(10);
        assert_eq!(status(Duration::from_mins(5), query).0, StatusCode::OK);
        assert_eq!(status(Duration::from_secs(301), query).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
