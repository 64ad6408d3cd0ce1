//! Tokens: which are good, where they are found, what they change, and how keys are had.

#[path = "authenticate/changes.rs"]
mod changes;
#[path = "authenticate/guarded.rs"]
mod guarded;
#[path = "authenticate/judged.rs"]
mod judged;
#[path = "authenticate/places.rs"]
mod places;
#[path = "authenticate/sets.rs"]
mod sets;
#[path = "authenticate/signer.rs"]
pub(crate) mod signer;
