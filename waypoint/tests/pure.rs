//! What needs no sockets: routes, filters, policies, tokens, balance, limits, reports.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "pure/admin.rs"]
mod admin;
#[path = "pure/asked.rs"]
mod asked;
#[path = "pure/authenticate.rs"]
mod authenticate;
#[path = "pure/authorize.rs"]
mod authorize;
#[path = "pure/balance.rs"]
mod balance;
#[path = "pure/compiled.rs"]
mod compiled;
#[path = "pure/east_west.rs"]
mod east_west;
#[path = "pure/filter.rs"]
mod filter;
#[path = "pure/fuzz.rs"]
mod fuzz;
#[path = "pure/limit.rs"]
mod limit;
#[path = "pure/outlier.rs"]
mod outlier;
#[path = "pure/permission.rs"]
mod permission;
#[path = "pure/process.rs"]
mod process;
#[path = "pure/report.rs"]
mod report;
#[path = "pure/retry.rs"]
mod retry;
#[path = "pure/route.rs"]
mod route;
#[path = "pure/session.rs"]
mod session;
#[path = "pure/state.rs"]
mod state;
#[path = "pure/told.rs"]
mod told;
