//! A subscription to events. It reconnects by itself and says so: stored events come again, others were
//! missed, hence whoever listens must read the record anew at [`Item::Connected`] (contract §4.8).

use std::time::Duration;

use jiff::Timestamp;
use prefect_api::event::{Event, EventFilter};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Error, Incoming, SILENCE, Socket, backoff};
use crate::http::Client;

/// How often we ping: sockets die silently.
const PING: Duration = Duration::from_secs(15);

/// What a subscription brings.
#[derive(Debug)]
pub enum Item {
    /// The subscription stands, for the first time or again.
    Connected,
    /// An event.
    Event(Box<Event>),
    /// The subscription is gone and will be tried again: poll meanwhile.
    Lost(Error),
}

/// A subscription. Ends when it is dropped.
#[derive(Debug)]
pub struct EventStream {
    items: mpsc::Receiver<Item>,
    _stop: DropGuard,
}

impl EventStream {
    /// Subscribes to events of these names, about one resource or all.
    pub fn subscribe(client: Client, names: &'static [&'static str], resource: Option<String>) -> Self {
        let (sender, items) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        tokio::spawn(async move {
            // Ends by the token, which the guard cancels: there is nothing to join for.
            stop.run_until_cancelled(Box::pin(run(client, names, resource, sender))).await;
        });
        Self { items, _stop: guard }
    }

    /// The next item. Cancel safe. `None` never comes while the stream lives.
    pub async fn next(&mut self) -> Option<Item> {
        self.items.recv().await
    }
}

async fn run(client: Client, names: &[&str], resource: Option<String>, items: mpsc::Sender<Item>) {
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let error = match listen(&client, names, resource.clone(), &items).await {
            Ok(()) => return,
            Err(error) => error,
        };
        failures = if started.elapsed() > SILENCE { 0 } else { failures + 1 };
        tracing::debug!(%error, "a subscription to events ended");
        // Even a refusal is tried again, rarely: a proxy or a password may be mended while we run.
        let pause = if error.is_transient() { backoff(failures) } else { Duration::from_mins(1) };
        if items.send(Item::Lost(error)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Listens until the socket fails; `Ok` when nobody wants the items any more.
async fn listen(
    client: &Client,
    names: &[&str],
    resource: Option<String>,
    items: &mpsc::Sender<Item>,
) -> Result<(), Error> {
    let mut socket = Socket::connect(client, &["events", "out"], client.auth_string()).await?;
    let filter = EventFilter::new(names, resource, Timestamp::now());
    socket.send(&json!({"type": "filter", "filter": filter})).await?;
    if items.send(Item::Connected).await.is_err() {
        return Ok(());
    }
    let mut ping = tokio::time::interval(PING);
    let mut heard = Instant::now();
    loop {
        let incoming = tokio::select! {
            incoming = socket.next() => incoming?,
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE {
                    return Err(socket.lost(&"nothing came for too long"));
                }
                socket.ping(Bytes::new()).await?;
                continue;
            }
        };
        heard = Instant::now();
        if let Incoming::Frame(mut frame) = incoming
            && frame["type"] == "event"
        {
            match serde_json::from_value(frame["event"].take()) {
                Ok(event) => {
                    if items.send(Item::Event(Box::new(event))).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => tracing::warn!(%error, "the server sent an event that cannot be read"),
            }
        }
    }
}
