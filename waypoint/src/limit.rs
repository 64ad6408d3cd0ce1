//! Pure: how many requests may pass.
//!
//! | | limits | by |
//! |---|---|---|
//! | `gate` | what is on its way to a service at one time: circuit breaking | [`Gates`] |
//! | `rate` | how many of a kind in a time: token buckets, quotas, what a rate limit service is asked about | [`Limiter`] |
//! | `counter` | the same for all proxies together: what a rate limit service is asked | [`Counter`] |
//! | `bucket`, `table` | one bucket; many of them, in bounded memory | |
//!
//! Time is an argument.

mod bucket;
mod counter;
mod gate;
mod key;
mod rate;
mod table;

pub use counter::{Counted, Counter, Descriptor, Inquiry, Per};
pub use gate::{Connections, Gate, Gates, Permit};
pub use rate::{Judged, Limiter, Told};
