//! `prefect-worker`; see [`prefect_worker::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    prefect_worker::cli::main(std::env::args_os().collect())
}
