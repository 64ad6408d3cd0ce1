//! The way to the control plane.
