//! The proxies that stand between a worker and its Prefect server, real ones as child processes.
//!
//! [`Reverse`] is nginx before the server, as facilities have it: a path prefix, TLS with a certificate of a
//! private authority, a header that it wants to see, and WebSockets passed on, refused or swallowed. [`Forward`]
//! is tinyproxy on the way out, as `HTTPS_PROXY` names it. Both keep a log of what passed, which tests can read.

mod authority;
mod forward;
mod reverse;

pub use forward::Forward;
pub use reverse::{Options, Reverse, WebSockets};
