//! A progress artifact: set from anywhere, sent at most once a second, the last value always.

use std::sync::Arc;

use prefect_api::record::NewArtifact;
use prefect_client::Client;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::artifact::{PROGRESS_EVERY, create};
use crate::engine::Patience;

/// A progress in percent, shown in the graph of the run and on the terminal. Cheap to clone and to set, also
/// from blocking threads. When its last clone is dropped, its last value is sent.
#[derive(Debug, Clone)]
pub struct Progress {
    percent: Arc<watch::Sender<f64>>,
}

impl Progress {
    /// A progress at 0, and the work that reports it.
    pub(crate) fn new(
        client: Client,
        patience: Arc<Patience>,
        mut artifact: NewArtifact,
        bar: Option<indicatif::ProgressBar>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        artifact.data = json!(0.0);
        let (sender, receiver) = watch::channel(0.0);
        let report = report(client, patience, artifact, bar, receiver);
        (Self { percent: Arc::new(sender) }, report)
    }

    /// Sets it to so many percent; values outside of 0–100 are moved into it.
    pub fn set(&self, percent: f64) {
        let percent = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
        self.percent.send_if_modified(|current| {
            let changed = current.to_bits() != percent.to_bits();
            *current = percent;
            changed
        });
    }

    /// Sets it to `done` of `total`; nothing to do is all done.
    pub fn set_of(&self, done: u64, total: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a progress needs no more than 52 bits")]
        let percent = if total == 0 { 100.0 } else { done as f64 / total as f64 * 100.0 };
        self.set(percent);
    }
}

async fn report(
    client: Client,
    patience: Arc<Patience>,
    artifact: NewArtifact,
    bar: Option<indicatif::ProgressBar>,
    mut percent: watch::Receiver<f64>,
) {
    let created = match create(&client, &patience, &artifact).await {
        Ok(created) => created,
        Err(error) => {
            tracing::warn!(key = artifact.key, %error, "a progress did not reach the Prefect server");
            return;
        }
    };
    let mut sent = 0.0_f64;
    // An unseen value is told before the end, so the loop sees the last one too.
    while percent.changed().await.is_ok() {
        let value = *percent.borrow_and_update();
        if let Some(bar) = &bar {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is within 0..=100"
            )]
            bar.set_position(value as u64);
        }
        match client.update_artifact(created.id, &json!(value)).await {
            Ok(()) => sent = value,
            Err(error) => tracing::debug!(key = artifact.key, %error, "a progress was not updated"),
        }
        pause(&percent).await;
    }
    let last = *percent.borrow();
    if sent.to_bits() != last.to_bits() {
        let data = json!(last);
        let update = || client.update_artifact(created.id, &data);
        if let Err(error) = patience.insist("update a progress", update).await {
            tracing::warn!(key = artifact.key, %error, "a progress did not reach the Prefect server");
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// Waits a second, or until nobody can set the progress any more.
async fn pause(percent: &watch::Receiver<f64>) {
    let mut percent = percent.clone();
    let gone = async { while percent.changed().await.is_ok() {} };
    if tokio::time::timeout_at(Instant::now() + PROGRESS_EVERY, gone).await.is_ok() {
        tracing::trace!("the progress was dropped");
    }
}
