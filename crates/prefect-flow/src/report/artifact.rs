//! Artifacts on their way to the server: one queue, in order.

use std::sync::Arc;
use std::time::Duration;

use prefect_api::record::{Artifact, NewArtifact};
use prefect_client::{Client, Error};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::Patience;
use crate::error::ArtifactError;

/// Artifacts that may wait for a server that is away.
const QUEUE: usize = 256;

/// The way out for artifacts that are written once. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ArtifactQueue {
    sender: mpsc::Sender<NewArtifact>,
}

impl ArtifactQueue {
    /// Starts the delivery. When `closing` fires it takes no more, and ends when it has sent what it has.
    pub(crate) fn spawn(
        client: Client,
        patience: Arc<Patience>,
        tasks: &TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        let (sender, mut receiver) = mpsc::channel::<NewArtifact>(QUEUE);
        tasks.spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = closing.cancelled(), if !receiver.is_closed() => {
                        receiver.close();
                        continue;
                    }
                    next = receiver.recv() => next,
                };
                let Some(artifact) = next else { return };
                if let Err(error) = create(&client, &patience, &artifact).await {
                    tracing::warn!(key = artifact.key, %error, "an artifact did not reach the Prefect server");
                }
            }
        });
        Self { sender }
    }

    /// Hands an artifact over. Waits only when hundreds are undelivered.
    pub(crate) async fn send(&self, artifact: NewArtifact) {
        if self.sender.send(artifact).await.is_err() {
            tracing::warn!("an artifact came after the last");
        }
    }
}

/// Creates an artifact, however long that takes, and only once.
pub(crate) async fn create(
    client: &Client,
    patience: &Patience,
    artifact: &NewArtifact,
) -> Result<Artifact, Error> {
    let (create, find) = (|| client.create_artifact(artifact), || client.find_artifact(artifact));
    patience.insist_once("create an artifact", create, find).await
}

/// Whether the server takes a key.
pub(crate) fn check_key(key: &str) -> Result<(), ArtifactError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !key.is_empty() && key.chars().all(allowed) {
        Ok(())
    } else {
        Err(ArtifactError::Key { key: key.to_owned() })
    }
}

/// A link as Markdown; there is no link on the wire (contract §3.6).
pub(crate) fn link(url: &str, text: Option<&str>) -> String {
    let text = text.unwrap_or(url).replace('[', "\\[").replace(']', "\\]");
    let url = url.replace(' ', "%20").replace('(', "%28").replace(')', "%29");
    format!("[{text}]({url})")
}

/// Not sooner than this after the last update of a progress.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_before_they_are_sent() {
        assert!(check_key("archive-progress-2").is_ok());
        for bad in ["", "Archive", "a_b", "a b", "é"] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_survives_odd_characters() {
        assert_eq!(link("http://h/a (b)", Some("[x]")), "[\\[x\\]](http://h/a%20%28b%29)");
        assert_eq!(link("http://h", None), "[http://h](http://h)");
    }
}
