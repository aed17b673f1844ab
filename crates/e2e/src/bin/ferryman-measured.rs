//! `ferryman-measured`: the flows that the engines are measured with, in Rust.

fn main() -> std::process::ExitCode {
    e2e::measured::main()
}
