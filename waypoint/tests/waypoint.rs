//! The waypoint through real sockets and real ztunnels: a lab whose namespace is behind one.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "waypoint/access.rs"]
mod access;
#[path = "waypoint/app.rs"]
mod app;
#[path = "waypoint/bytes.rs"]
mod bytes;
#[path = "waypoint/hostile.rs"]
mod hostile;
#[path = "waypoint/http.rs"]
mod http;
#[path = "waypoint/rules.rs"]
mod rules;
#[path = "waypoint/shop.rs"]
mod shop;
#[path = "waypoint/tokens.rs"]
mod tokens;
