//! An S3 server over TCP, as strict as Amazon's where an archive depends on it.
//!
//! Protocol, signatures (V4, also presigned) and aws-chunked bodies are the work of the `s3s` crate. The
//! storage behind it is our own, and not `s3s-fs`, because that one names its files after whole keys (a key
//! of some 150 bytes exceeds the file system's limit for a name), lists objects without `ETag`, refuses archive
//! classes, and knows neither `RestoreObject` nor `ListMultipartUploads`.
//!
//! What it does as Amazon documents it:
//! - `ETag` is the md5 of the object, or the md5 of the parts' md5s with `-N` for a multipart upload;
//! - `Content-MD5` and `x-amz-checksum-*` (header or trailer) are verified before anything is stored;
//! - objects of class `GLACIER` and `DEEP_ARCHIVE` are read after a restore only (403 `InvalidObjectState`),
//!   `RestoreObject` answers 202, 409 `RestoreAlreadyInProgress` and 200, `HEAD` shows `x-amz-restore`;
//! - parts below 5 MiB, wrong `ETag`s and part orders are refused; conditions (`If-Match`, `If-None-Match`) hold.
//!
//! What it leaves out: versions, policies, tags, lifecycle rules, encryption, virtual-host addressing, and
//! checksums over whole multipart objects.

mod blob;
mod gate;
mod listing;
mod multipart;
mod object;
mod service;
mod store;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;

pub use self::gate::Call;
pub use self::store::{ObjectInfo, Store, UploadInfo};
use crate::faults::Faults;
use crate::server::Server;

/// How long a restore from an archive class takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// This many `HEAD` requests find it under way; with 0 it is done at once.
    Heads(u32),
    /// It is done after this time.
    After(Duration),
    /// It is under way until [`Store::finish_restores`].
    Held,
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Directory of the data, kept; without it a temporary one, removed in the end.
    pub data: Option<PathBuf>,
    /// Access key id of the only account.
    pub access_key: String,
    /// Its secret key.
    pub secret_key: SecretString,
    /// Buckets to create where they are absent.
    pub buckets: Vec<String>,
    /// How long restores take.
    pub restore: Restore,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            data: None,
            access_key: "ferryman-test".to_owned(),
            secret_key: SecretString::from("ferryman-test-secret"),
            buckets: Vec::new(),
            restore: Restore::Heads(0),
        }
    }
}

/// A running S3 server. Dropping it ends it, and removes its data if they are temporary.
#[derive(Debug)]
pub struct S3Server {
    server: Server,
    store: Arc<Store>,
    gate: Arc<gate::Gate>,
    access_key: String,
    secret_key: SecretString,
    _temporary: Option<TempDir>,
}

impl S3Server {
    /// Opens the data, creates the buckets and starts to listen.
    pub async fn start(options: Options) -> Result<Self> {
        let (dir, temporary) = if let Some(dir) = options.data {
            (dir, None)
        } else {
            let temporary = tempfile::Builder::new()
                .prefix("ferryman-s3-")
                .tempdir()
                .context("failed to make a directory for the S3 server")?;
            (temporary.path().to_owned(), Some(temporary))
        };
        let store = Arc::new(Store::open(&dir, options.restore)?);
        for bucket in &options.buckets {
            store.create_bucket(bucket)?;
        }
        let gate = Arc::new(gate::Gate::default());
        let router = gate::router(&gate, &store, &options.access_key, options.secret_key.expose_secret());
        let server = Server::start(options.host, options.port, router).await?;
        Ok(Self {
            server,
            store,
            gate,
            access_key: options.access_key,
            secret_key: options.secret_key,
            _temporary: temporary,
        })
    }

    /// Base URL of the service, for path-style requests.
    pub fn endpoint(&self) -> String {
        self.server.url()
    }

    /// The address that is listened on.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Access key id of the only account.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// Its secret key.
    pub fn secret_key(&self) -> &str {
        self.secret_key.expose_secret()
    }

    /// The objects, past the protocol.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The faults to inject; `what` is the operation, the subject `bucket/key`.
    pub fn faults(&self) -> &Faults {
        self.gate.faults()
    }

    /// Every signed request so far, in the order of their ends.
    pub fn calls(&self) -> Vec<Call> {
        self.gate.calls()
    }

    /// How often an operation was asked for.
    pub fn calls_of(&self, operation: &str) -> usize {
        self.gate.calls().iter().filter(|call| call.operation == operation).count()
    }

    /// Stops listening and frees the port.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}
