//! Transport to a Prefect server: HTTP, WebSockets, authentication, CSRF, retries and settings. No policy.
