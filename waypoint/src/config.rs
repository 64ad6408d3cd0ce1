//! The command line and environment of the process.
