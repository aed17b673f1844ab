//! The program of containers that are looked at from outside: it says for which run it is there and stays until
//! it is killed.

#![expect(clippy::print_stdout, reason = "its output is what is looked at")]

fn main() {
    println!("probe of {}", std::env::var("PREFECT__FLOW_RUN_ID").unwrap_or_default());
    loop {
        std::thread::park();
    }
}
