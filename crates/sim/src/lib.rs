//! The control plane in one thread on virtual time, with injected faults
