//! HTTP/2 for tunnels, against its rules, against floods, and against the `h2` crate.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod differential;
mod floods;
mod flow;
mod h2spec;
mod handover;
mod random;
mod rules;
mod states;
mod support;
mod talk;
mod verdicts;
