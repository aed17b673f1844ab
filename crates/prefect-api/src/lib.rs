//! The Prefect 3 API without I/O: wire types, request bodies and base-job-template resolution.
