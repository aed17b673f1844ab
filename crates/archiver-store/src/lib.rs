//! Object storage for the archiver: S3, with or without Glacier storage classes.
//!
//! [`S3Store`] speaks to any server with S3's protocol. It relies on nothing that only AWS has: no checksum
//! trailers, no conditional writes, no virtual-host addressing; integrity rests on `Content-MD5` and on what the
//! domain verifies itself.

mod error;
mod settings;
mod store;

pub use settings::{S3Settings, S3SettingsError};
pub use store::S3Store;
