//! Transport to a Prefect server: HTTP, WebSockets, authentication, CSRF, retries and settings. No policy:
//! worker, runtime and bootstrap decide what to send and what an answer means.

mod api;
mod csrf;
mod error;
mod http;
mod proxy;
mod retry;
pub mod settings;
pub mod socket;
mod tls;

pub use api::Acquire;
pub use error::Error;
pub use http::{API_VERSION, Client, PREFECT_VERSION};
pub use settings::Settings;
