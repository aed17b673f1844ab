//! What one process shows to those who operate it, and lets them do: status, figures, health, its end.

use std::net::SocketAddr;

use prefect_client::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::{Control, ShutdownRequest};
use crate::error::{Error, chain};
use crate::health::Health;
use crate::http;
use crate::metrics::Metrics;
use crate::status::StatusBoard;

/// Status, figures and health of a process, whatever number of pools it serves. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    /// What the worker is doing.
    pub status: StatusBoard,
    /// Figures about the worker.
    pub metrics: Metrics,
    /// Whether it is well.
    pub health: Health,
}

impl Admin {
    /// That of a worker of this name.
    pub fn new(worker: &str, client: Client) -> Self {
        let status = StatusBoard::new(worker, client.api_url().as_str());
        let metrics = Metrics::new(status.clone());
        let health = Health::new(status.clone(), client);
        Self { status, metrics, health }
    }

    /// Opens the control socket and, if there is an address, the HTTP server. Both end with `stop`. What is
    /// asked for through the socket comes out of the receiver.
    ///
    /// # Errors
    /// The address cannot be listened on. A worker without a control socket works, and says so in its log.
    pub async fn open(
        &self,
        http: Option<SocketAddr>,
        stop: &CancellationToken,
    ) -> Result<(mpsc::Receiver<ShutdownRequest>, JoinSet<()>), Error> {
        let mut servers = JoinSet::new();
        if let Some(address) = http {
            let listener = http::listen(address).await?;
            servers.spawn(http::serve(listener, self.health.clone(), self.metrics.clone(), stop.clone()));
        }
        let (sender, requests) = mpsc::channel(4);
        match Control::listen(&self.status, &|name| std::env::var(name).ok()).await {
            Ok(control) => {
                let (status, health) = (self.status.clone(), self.health.clone());
                servers.spawn(control.serve(status, health, sender, stop.clone()));
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "no control socket: status, drain and healthcheck will not find this worker"
                );
            }
        }
        Ok((requests, servers))
    }
}
