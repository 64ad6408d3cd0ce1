//! What an operator may ask the process.
