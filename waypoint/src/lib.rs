//! The layer 7 proxy of the mesh: a namespace's waypoint, or a gateway at its edge.
//!
//! One request, top to bottom (`request`):
//!
//! ```text
//!  ztunnel ══ HBONE ══▶ arrive ─▶ parse ─▶ authenticate ─▶ authorise ─▶ route ─▶ limit ─▶ transform
//!                                                                                            │
//!  ztunnel ◀══ HBONE ══ upstream ◀─ call (retry, timeout) ◀──────────── choose ◀─────────────┘
//!                          └──────▶ respond ─▶ report
//! ```
//!
//! What is known of a service is compiled when it arrives and published by one pointer swap (`compiled`, `state`); a
//! request takes no lock to read it.
//!
//! | file | part |
//! |---|---|
//! | `config`, `start` | the process, and its threads |
//! | `discovery`, `state`, `compiled` | what the control plane says, and what a request sees of it |
//! | `client`, `asked` | who asks, and for what: the one form that routes, policies and limits judge |
//! | `proxy`, `load` | what all connections share; how much is carried at a time |
//! | `arrive`, `request`, `call`, `carry`, `upstream` | the path |
//! | `east_west` | the path of a network's gateway: from tunnel to tunnel |
//! | `route`, `filter` | pure: which rule, and what it changes |
//! | `retry`, `session` | pure: whether again and when; whom a client stays with |
//! | `authorize`, `authenticate`, `permission` | pure: who may; tokens; what others are asked |
//! | `service`, `process` | pure: services of others; what a processor is shown of a request and its answer |
//! | `balance`, `outlier`, `limit` | pure: which endpoint, who is left out, how many may |
//! | `report`, `admin` | what an operator sees |

pub mod admin;
pub mod arrive;
pub mod asked;
pub mod authenticate;
pub mod authorize;
pub mod balance;
pub mod call;
pub mod carry;
pub mod client;
pub mod compiled;
pub mod config;
pub mod discovery;
pub mod east_west;
pub mod filter;
pub mod limit;
pub mod load;
pub mod outlier;
pub mod permission;
pub mod process;
pub mod proxy;
pub mod report;
pub mod request;
pub mod retry;
pub mod route;
pub mod service;
pub mod session;
pub mod start;
pub mod state;
pub mod upstream;
