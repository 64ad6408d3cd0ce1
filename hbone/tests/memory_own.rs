//! The memory of an idle connection once more, with our own engine. By itself, as it counts all
//! allocations of its process.

#[path = "memory.rs"]
mod memory;
