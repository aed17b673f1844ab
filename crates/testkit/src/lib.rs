//! Test kit: real servers on free ports, simulators where the real part cannot run, and fault injection.
