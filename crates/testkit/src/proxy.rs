//! The proxies that stand between a worker and its Prefect server or its engine, real ones as child processes.
//!
//! [`Reverse`] is nginx before the server, as facilities have it: a path prefix, TLS with a certificate of a
//! private authority, a header that it wants to see, and WebSockets passed on, refused or swallowed. [`Forward`]
//! is tinyproxy on the way out, as `HTTPS_PROXY` names it. Both keep a log of what passed, which tests can read.
//! [`EngineTls`] is nginx before the Docker engine, which lets clients with the right certificate in.
//!
//! [`CountingProxy`] is our own and changes nothing: it counts what a worker asks. A [`Forwarder`] is the way to a
//! server for containers without a network.

mod authority;
mod counting;
mod engine_tls;
mod forward;
mod reverse;

pub use counting::{CountingProxy, Forwarder, Traffic};
pub use engine_tls::EngineTls;
pub use forward::Forward;
pub use reverse::{Options, Reverse, WebSockets};
