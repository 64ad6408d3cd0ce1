//! Who may: the table, and what must hold for any policy.

#[path = "authorize/any.rs"]
mod any;
#[path = "authorize/judged.rs"]
mod judged;
#[path = "authorize/kept.rs"]
mod kept;
#[path = "authorize/table.rs"]
pub(crate) mod table;
