//! A proxy that counts: HTTP requests by what they ask for, and WebSocket frames.
//!
//! It passes every byte on unchanged, and reads along; what it cannot read it passes on uncounted.

mod meter;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::net::TcpStream;

use super::relay::{self, Acceptor};
use meter::{Meter, Seen};

/// What went through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// HTTP requests by method and path; ids in paths are written `:id`.
    pub requests: BTreeMap<String, u64>,
    /// WebSocket frames from client to server, pings and pongs included.
    pub frames_sent: u64,
    /// WebSocket frames from server to client, pings and pongs included.
    pub frames_received: u64,
}

impl Traffic {
    /// All HTTP requests, those that open WebSockets included.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |name: &String| earlier.requests.get(name).copied().unwrap_or_default();
        let requests = self.requests.iter().map(|(name, count)| (name.clone(), count - before(name)));
        Self {
            requests: requests.filter(|(_, count)| *count > 0).collect(),
            frames_sent: self.frames_sent - earlier.frames_sent,
            frames_received: self.frames_received - earlier.frames_received,
        }
    }
}

/// A proxy on a free port of the loopback interface. Dropping it cuts its connections.
#[derive(Debug)]
pub struct CountingProxy {
    acceptor: Acceptor,
    traffic: Arc<Mutex<Traffic>>,
}

impl CountingProxy {
    /// Starts a proxy in front of the server at `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let traffic = Arc::new(Mutex::new(Traffic::default()));
        let counted = Arc::clone(&traffic);
        let serve = move |client| connection(client, upstream, Arc::clone(&counted));
        Ok(Self { acceptor: Acceptor::start(serve).await?, traffic })
    }

    /// The address that is listened on.
    pub fn addr(&self) -> SocketAddr {
        self.acceptor.addr()
    }

    /// What went through so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Passes one connection on. A server that is away closes it, as it would without us.
async fn connection(mut client: TcpStream, upstream: SocketAddr, traffic: Arc<Mutex<Traffic>>) {
    let Some(mut server) = relay::connect(upstream).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let count = |seen: Seen, sent: bool| {
        let mut traffic = traffic.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Seen::Request(name) => *traffic.requests.entry(name).or_default() += 1,
            Seen::Frame if sent => traffic.frames_sent += 1,
            Seen::Frame => traffic.frames_received += 1,
        }
    };
    let (mut sent, mut received) = (Meter::of_client(), Meter::of_server());
    tokio::join!(
        relay::pass(from_client, to_server, |bytes| sent.feed(bytes, &|seen| count(seen, true))),
        relay::pass(from_server, to_client, |bytes| received.feed(bytes, &|seen| count(seen, false))),
    );
}
