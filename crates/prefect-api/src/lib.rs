//! The Prefect 3 API without I/O: wire types, request bodies and base-job-template resolution.
//!
//! Replies are read leniently (fields may be added by newer servers), requests are written strictly (the
//! server refuses unknown fields). Where a rule of the server is behind a type, its comment names the section
//! of the protocol notes in `docs/protocol.md`.

pub mod channel;
pub mod deployment;
pub mod event;
pub mod flow_run;
pub mod id;
pub mod nearest;
pub mod record;
pub mod state;
pub mod task_event;
pub mod template;
pub mod work_pool;
