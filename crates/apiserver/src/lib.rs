//! The Kubernetes API server: discovery, CRUD, watch, patch, authentication and authorisation
