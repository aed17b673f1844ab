//! Results of flows in S3 buckets: the storage that the blocks of Python's `prefect-aws` describe, so that both
//! languages read what the other keeps.
//!
//! ```no_run
//! use prefect_flow::Program;
//! use prefect_flow_s3::S3Bucket;
//!
//! // `PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK=s3-bucket/results`, or the server's default, names the block.
//! let program = Program::new("nightly", "1.0").storage_block(S3Bucket);
//! ```

mod block;
mod storage;

pub use block::{BlockError, S3Bucket};
pub use storage::{S3Storage, Settings, StorageError};
