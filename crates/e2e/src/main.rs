//! `ferryman-stack`: what `cargo xtask demo`, `measure`, `differential` and `images` hand over to.

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::cli::main()
}
