//! Network namespaces, and what the tests ask of them.

use std::process::Child;

use lab::{Netns, Place};

/// A network namespace that ends with this value.
pub fn place(role: &str) -> Place {
    Place::new(role).unwrap()
}

pub trait Asked {
    /// What a command prints inside; it must succeed.
    fn says<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String;

    fn ruleset(&self) -> String {
        self.says(["nft", "list", "ruleset"])
    }
}

impl Asked for Netns {
    fn says<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        self.exec(words).unwrap().success().unwrap()
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
