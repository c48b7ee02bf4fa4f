//! What Kubernetes does to each built-in kind: defaults, validation, update rules, table columns
