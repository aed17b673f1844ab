//! `ferryman-scenarios`: the flows of the engines' differential, in Rust.

fn main() -> std::process::ExitCode {
    e2e::scenarios::main()
}
