//! The worker channel: heartbeats to the server, changes of the pool from it (contract §2.3).

use std::time::Duration;

use jiff::Timestamp;
use prefect_api::channel::{Heartbeat, Hello, Ready, ServerFrame, WorkerFrame, WorkerMessage};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Bytes;
use uuid::Uuid;

use super::{Error, Incoming, SETUP, SILENCE, Socket};
use crate::http::Client;

/// An open worker channel.
#[expect(missing_debug_implementations, reason = "a socket has nothing to show")]
pub struct Channel {
    socket: Socket,
    heartbeat: Heartbeat,
    heard: Instant,
}

impl Channel {
    /// Opens the channel of a pool, which registers the worker and, if asked to, makes the pool.
    pub async fn connect(client: &Client, pool: &str, hello: Hello) -> Result<(Self, Ready), Error> {
        // The auth string wins over the key, and only this socket takes the key (contract §1.5).
        let token = client.auth_string().or(client.api_key());
        let mut socket = Socket::connect(client, &["work_pools", pool, "workers", "connect"], token).await?;
        let heartbeat = Heartbeat {
            consumer_id: hello.consumer_id,
            worker_name: hello.worker_name.clone(),
            heartbeat_interval_seconds: hello.heartbeat_interval_seconds,
        };
        socket.send(&frame(WorkerMessage::Hello(Box::new(hello)))).await?;
        let ready = tokio::time::timeout(SETUP, ready(&mut socket)).await;
        let ready = ready.unwrap_or_else(|_| Err(socket.lost(&"the server did not answer the hello")))?;
        let heartbeat =
            Heartbeat { heartbeat_interval_seconds: ready.effective_heartbeat_interval_seconds, ..heartbeat };
        Ok((Self { socket, heartbeat, heard: Instant::now() }, ready))
    }

    /// Tells that the worker is alive. The server does not answer that, hence a ping goes along: if nothing has
    /// come for several heartbeats (as [`Self::next`] sees it), the channel is dead.
    pub async fn heartbeat(&mut self) -> Result<(), Error> {
        let several = Duration::from_secs(self.heartbeat.heartbeat_interval_seconds.saturating_mul(3));
        if self.heard.elapsed() > SILENCE.max(several) {
            return Err(self.socket.lost(&"nothing came for too long"));
        }
        self.socket.send(&frame(WorkerMessage::Heartbeat(self.heartbeat.clone()))).await?;
        self.socket.ping(Bytes::new()).await
    }

    /// The next frame of the server. Cancel safe.
    pub async fn next(&mut self) -> Result<ServerFrame, Error> {
        loop {
            let incoming = self.socket.next().await?;
            self.heard = Instant::now();
            if let Incoming::Frame(value) = incoming {
                return serde_json::from_value(value).map_err(|error| self.socket.lost(&error));
            }
        }
    }

    /// Closes the channel: the worker goes offline once its heartbeats are missed.
    pub async fn close(self) {
        self.socket.close().await;
    }
}

async fn ready(socket: &mut Socket) -> Result<Ready, Error> {
    loop {
        if let Incoming::Frame(value) = socket.next().await?
            && let ServerFrame::Ready { payload } =
                serde_json::from_value(value).map_err(|error| socket.lost(&error))?
        {
            return Ok(*payload);
        }
    }
}

fn frame(message: WorkerMessage) -> WorkerFrame {
    WorkerFrame { id: Uuid::now_v7(), sent_at: Timestamp::now(), message }
}
