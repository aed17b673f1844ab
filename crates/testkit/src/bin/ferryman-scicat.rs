//! The stand-alone SciCat simulator of the development stack.

use std::process::ExitCode;

fn main() -> ExitCode {
    testkit::cli::scicat_main()
}
