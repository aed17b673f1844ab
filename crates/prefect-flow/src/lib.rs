//! Flows and tasks in Rust: the engine that executes a flow run and reports it to Prefect.
