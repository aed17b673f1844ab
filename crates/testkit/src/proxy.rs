//! The proxies that stand between a worker and its Prefect server or its engine, real ones as child processes.
//!
//! [`Reverse`] is nginx before the server, as facilities have it: a path prefix, TLS with a certificate of a
//! private authority, a header that it wants to see, and WebSockets passed on, refused or swallowed. [`Forward`]
//! is tinyproxy on the way out, as `HTTPS_PROXY` names it. Both keep a log of what passed, which tests can read.
//! [`EngineTls`] is nginx before the Docker engine, which lets clients with the right certificate in.
//!
//! Our own are [`CountingProxy`], which changes nothing and counts what a worker asks; [`FaultyProxy`], which fails as
//! networks and gateways do; and the [`Forwarder`], the way to a server for containers without a network.

mod authority;
mod counting;
mod engine_tls;
mod faulty;
mod forward;
mod forwarder;
mod relay;
mod reverse;

pub use counting::{CountingProxy, Traffic};
pub use engine_tls::EngineTls;
pub use faulty::FaultyProxy;
pub use forward::Forward;
pub use forwarder::Forwarder;
pub use reverse::{Options, Reverse, WebSockets};
