//! Connections to endpoints.
