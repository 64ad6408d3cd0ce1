//! What is done with bytes that a fuzzer chose, where a waypoint decides who may. Each function takes any bytes and
//! panics only when something is wrong with us. `waypoint/tests/pure/fuzz.rs` includes these files too.

#[path = "access/path.rs"]
mod path_;
#[path = "access/policy.rs"]
mod policy_;
#[path = "access/token.rs"]
mod token_;

pub use self::{path_::path, policy_::policy, token_::token};
