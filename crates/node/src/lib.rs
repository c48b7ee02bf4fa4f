//! The node agent: pod state machine, shim, containers, volumes, probes, logs, exec
