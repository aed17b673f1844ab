//! `ferryman-puppet`: a flow run that does what it is told.

fn main() -> std::process::ExitCode {
    e2e::puppet::main()
}
