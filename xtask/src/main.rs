//! Build and test automation: `cargo xtask`.
fn main() {}
