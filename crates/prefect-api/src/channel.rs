//! Frames of the worker channel, `WS /work_pools/{name}/workers/connect` (contract §2.3). They are strict:
//! one unknown key from us ends the channel.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::work_pool::{BaseJobTemplate, WorkPool};

/// The only version of the channel that we speak.
pub const CHANNEL_VERSION: &str = "work_pool_worker_channel.v1";

/// A frame to the server.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerFrame {
    /// Names the frame.
    pub id: Uuid,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub message: WorkerMessage,
}

/// What a worker says.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", content = "payload")]
pub enum WorkerMessage {
    /// The first frame.
    #[serde(rename = "worker.hello.v1")]
    Hello(Box<Hello>),
    /// Still there.
    #[serde(rename = "worker.heartbeat.v1")]
    Heartbeat(Heartbeat),
}

/// The first frame of a worker.
#[derive(Debug, Clone, Serialize)]
pub struct Hello {
    /// One per process, kept over reconnects.
    pub consumer_id: Uuid,
    /// The worker's name.
    pub worker_name: String,
    /// The kind of pools that it serves.
    pub worker_type: String,
    /// Seconds between heartbeats.
    pub heartbeat_interval_seconds: u64,
    /// [`CHANNEL_VERSION`].
    pub supported_channel_versions: Vec<&'static str>,
    /// `worker_heartbeat.v1` and `work_pool_snapshot.v1`, both mandatory.
    pub requested_capabilities: Vec<&'static str>,
    /// Names of the queues; empty means all.
    pub work_queue_names: Vec<String>,
    /// Let the server make the pool.
    pub create_pool_if_not_found: bool,
    /// The template that the server makes it with.
    pub default_base_job_template: BaseJobTemplate,
}

/// Still there.
#[derive(Debug, Clone, Serialize)]
pub struct Heartbeat {
    /// As in [`Hello`].
    pub consumer_id: Uuid,
    /// As in [`Hello`].
    pub worker_name: String,
    /// As in [`Hello`].
    pub heartbeat_interval_seconds: u64,
}

/// What the server says.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type")]
pub enum ServerFrame {
    /// The answer to [`Hello`].
    #[serde(rename = "worker.ready.v1")]
    Ready {
        /// What was agreed.
        payload: Box<Ready>,
    },
    /// The pool changed.
    #[serde(rename = "work_pool.snapshot.v1")]
    Snapshot {
        /// The pool.
        payload: Box<Snapshot>,
    },
    /// A frame that this program does not know.
    #[serde(other)]
    Unknown,
}

/// What was agreed.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// Seconds between heartbeats.
    pub effective_heartbeat_interval_seconds: u64,
    /// The queues, found or made.
    #[serde(default)]
    pub resolved_work_queues: Vec<Value>,
    /// The pool.
    pub initial_snapshot: Snapshot,
}

/// The pool at one moment; applied only if the sequence grows, which starts anew at each connection.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    /// Number of the snapshot.
    pub snapshot_sequence: u64,
    /// Why it was sent.
    #[serde(default)]
    pub reason: String,
    /// The pool.
    pub work_pool: WorkPool,
}
