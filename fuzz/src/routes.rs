//! What is done with bytes that a fuzzer chose, where a waypoint looks for a rule and does as it says. Each function
//! takes any bytes and panics only when something is wrong with us. `waypoint/tests/pure/route/fuzz.rs` includes this too.

#[path = "routes/request.rs"]
mod request;
#[path = "routes/resource.rs"]
mod resource;

pub use self::{request::request, resource::resource};
