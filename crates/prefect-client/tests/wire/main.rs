//! The client against a small server that answers as told and records what came.

#![expect(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod http;
mod once;
mod server;
mod sockets;
