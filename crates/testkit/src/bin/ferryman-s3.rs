//! The stand-alone S3 server of the development stack.

use std::process::ExitCode;

fn main() -> ExitCode {
    testkit::cli::s3_main()
}
