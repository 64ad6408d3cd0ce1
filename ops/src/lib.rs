//! What an operator sees of any process of the mesh: its log, its metrics, whether it is ready,
//! the doors to ask it questions, how it goes away, and the threads that carry its traffic.
//!
//! # Layout
//!
//! | module | holds |
//! |---|---|
//! | [`log`] | starts the log; changes levels while the process runs |
//! | `format` | one event as one line, in Istio's text or JSON form |
//! | [`sink`] | the log's way to stdout: never blocks, drops and counts instead |
//! | [`metrics`] | the registry behind `/metrics` |
//! | [`series`] | series that stay bounded |
//! | [`ends`] | the labels of a connection's or request's ends |
//! | `streamed` | a long answer, written piece by piece |
//! | [`memory`] | how much there is, and how much there may be |
//! | [`process`] | file descriptors, memory, CPU, runtime |
//! | [`random`] | numbers that need not be secret |
//! | [`ready`] | named gates behind `/healthz/ready` |
//! | [`discovery`] | figures of a proxy's discovery stream |
//! | [`signals`] | somebody outside wants it to end |
//! | [`drain`] | stop accepting, wait, stop now |
//! | [`threads`] | threads that carry traffic, and which of them has least to do |
//! | [`admin`] | the routes above, and the server that answers them |
//! | [`time`] | instants as RFC 3339 text |

pub mod admin;
pub mod discovery;
pub mod drain;
pub mod ends;
mod format;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod process;
pub mod random;
pub mod ready;
pub mod series;
mod server;
pub mod signals;
pub mod sink;
mod streamed;
pub mod threads;
pub mod time;
