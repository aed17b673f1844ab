//! End-to-end tests, the demo and the measurements: the whole of Ferryman against real servers.
