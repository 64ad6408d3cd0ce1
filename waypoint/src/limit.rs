//! Pure: how many requests may pass.
//!
//! | | limits | by |
//! |---|---|---|
//! | `gate` | what is on its way to a service at one time: circuit breaking | [`Gates`] |
//! | `rate` | how many of a kind in a time: token buckets, quotas, questions to a rate limit service | [`Limiter`] |
//! | `bucket`, `table` | one bucket; many of them, in bounded memory | |
//!
//! Time is an argument.

mod bucket;
mod gate;
mod key;
mod rate;
mod table;

pub use gate::{Connections, Gate, Gates, Permit};
pub use rate::{Descriptor, Judged, Limiter, Question, Told};
