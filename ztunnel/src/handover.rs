//! Connections go from one ztunnel to the next, and nobody who uses them notices.
#![allow(dead_code)]

mod bytes;
mod channel;
mod memory;
mod message;
mod right;
mod told;

pub(crate) use told::{Account, PodName, Told, Way};
