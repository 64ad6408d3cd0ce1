//! The memory of an idle connection once more, with the engine `h2`. By itself, as it counts all
//! allocations of its process.

#[path = "memory.rs"]
mod memory;
