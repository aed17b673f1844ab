//! The worker channel: heartbeats to the server, changes of the pool from it (contract §2.3).

use jiff::Timestamp;
use prefect_api::channel::{Heartbeat, Hello, Ready, ServerFrame, WorkerFrame, WorkerMessage};
use uuid::Uuid;

use super::{Error, Incoming, SETUP, Socket};
use crate::http::Client;

/// An open worker channel.
#[expect(missing_debug_implementations, reason = "a socket has nothing to show")]
pub struct Channel {
    socket: Socket,
    heartbeat: Heartbeat,
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
        Ok((Self { socket, heartbeat }, ready))
    }

    /// Tells that the worker is alive; the server does not answer.
    pub async fn heartbeat(&mut self) -> Result<(), Error> {
        self.socket.send(&frame(WorkerMessage::Heartbeat(self.heartbeat.clone()))).await
    }

    /// The next frame of the server. Cancel safe.
    pub async fn next(&mut self) -> Result<ServerFrame, Error> {
        loop {
            if let Incoming::Frame(value) = self.socket.next().await? {
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
