//! The archiver's flows in one program; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    archiver_flows::program().main()
}
