//! The Prefect worker: polls work pools, claims flow runs and launches one container per run.
