//! What runs inside the containers of the launcher's tests: a static program of the standard library alone.
//!
//! `container_probe exit N`, `sleep SECONDS`, `print TEXT…`, `env`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is its job")]

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["exit", code] => return ExitCode::from(code.parse().unwrap_or(99)),
        ["sleep", seconds] => std::thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(1))),
        ["print", words @ ..] => println!("{}", words.join(" ")),
        ["env"] => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        other => {
            eprintln!("unknown request: {other:?}");
            return ExitCode::from(98);
        }
    }
    ExitCode::SUCCESS
}
