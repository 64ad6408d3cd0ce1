//! Which rule is for a request.
//!
//! Rules of one service's port (or of one listener) enter, from all objects that name it; a [`Table`] leaves, in
//! which the first rule that matches is found without asking the others:
//!
//! 1. one rule is compiled once, whoever refers to it     ([`Rule`]; `rule`)
//! 2. its matches become entries, in the order that Gateway API prescribes (`order`)
//! 3. entries are indexed by host, path and one header    ([`Table`]; `table`, `index`, `trie`)
//! 4. a request walks down its own path; of what it finds there, the entry that comes first wins
//!
//! Nothing here does I/O, looks at a clock or draws a random number: whoever asks brings them.

mod backends;
mod hosts;
mod index;
mod order;
mod path;
mod predicate;
mod rule;
mod table;
mod tcp;
mod text;
mod timeouts;
mod trie;

pub use backends::{Backend, Backends, Picked, ServiceName};
pub use path::Matched;
pub use rule::{Name, Rule};
pub use table::{Found, Table};
pub use tcp::{TcpRule, TcpTable};
pub use text::Text;
pub(crate) use text::search;
pub use timeouts::{Deadlines, Limit, Timeouts, grpc_timeout};
