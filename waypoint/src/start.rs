//! The process: its parts wired together, and its end.
