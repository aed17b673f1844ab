//! A SciCat catalogue in memory, true to what archivers met on a real backend.
//!
//! Kept on purpose are its oddities: an expired token answers 403, or 200 with an empty body; four shapes of error
//! bodies; 500 for a duplicate `archiveId` and for bodies above 16 MiB; 400 for an unknown job;
//! a general `PATCH` that resets what it does not name, beside `/datasetlifecycle`, which merges; `jobResultObject`
//! replaced as a whole; strict bodies in v4 and for datasets, lenient ones for v3 jobs; counters of a
//! dataset that follow its datablocks.
//!
//! There is one account, with every right. [`Catalogue`] is the state behind the service: a test prepares
//! and inspects it there, injects faults, and reads the requests that were made.

mod auth;
mod blocks;
mod catalogue;
mod datasets;
mod http;
mod jobs;
mod reply;
mod state;
mod validate;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use secrecy::{ExposeSecret, SecretString};

pub use self::catalogue::{Catalogue, Recorded};
use crate::faults::Faults;
use crate::server::Server;

/// How a catalogue is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Name of the only account.
    pub username: String,
    /// Its password.
    pub password: SecretString,
    /// Life of a token.
    pub token_life: Duration,
    /// What the ids of new datasets begin with.
    pub pid_prefix: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            username: "archiver".to_owned(),
            password: SecretString::from("archiver-password"),
            token_life: Duration::from_hours(1),
            pid_prefix: "20.500.12345".to_owned(),
        }
    }
}

/// A running catalogue. Dropping it ends it.
#[derive(Debug)]
pub struct SciCat {
    server: Server,
    catalogue: Arc<Catalogue>,
    username: String,
    password: SecretString,
}

impl SciCat {
    /// Starts an empty catalogue.
    pub async fn start(options: Options) -> Result<Self> {
        let catalogue = Arc::new(Catalogue::new(&options));
        let server = Server::start(options.host, options.port, http::router(&catalogue)).await?;
        Ok(Self { server, catalogue, username: options.username, password: options.password })
    }

    /// Base URL, without the API's prefix.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The address that is listened on.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Name of the only account.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// Its password.
    pub fn password(&self) -> &str {
        self.password.expose_secret()
    }

    /// The state behind the service.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The faults to inject; `what` is the HTTP method, the subject the decoded path.
    pub fn faults(&self) -> &Faults {
        self.catalogue.faults()
    }

    /// Stops listening and frees the port.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}
