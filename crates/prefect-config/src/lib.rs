//! The bootstrap: registers variables, secrets, limits, work pools and deployments with a Prefect server.
