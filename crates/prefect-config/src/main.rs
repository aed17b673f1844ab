//! `prefect-config`: see the library.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    prefect_config::cli::main().await
}
