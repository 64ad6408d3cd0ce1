//! Tokens that were found good, so that a signature is checked once and not with every request.
//!
//! A token is known by all of its text, the rule that found it good, and the very key set that did: when the keys
//! change, none is known. Whether it is still valid is asked each time. Their number is bounded; when there is no
//! room, half of them are forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Claims;
use super::keys::Keys;

/// Most tokens that are kept for a service.
const MOST: usize = 512;
/// Longest token that is kept, in bytes.
const LONGEST: usize = 4096;

/// Good tokens by their text.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: Mutex<HashMap<Box<str>, Entry>>,
}

#[derive(Debug)]
struct Entry {
    rule: usize,
    keys: Arc<Keys>,
    claims: Arc<Claims>,
}

impl Seen {
    /// What it says, if it was found good by these keys.
    pub(super) fn find(&self, rule: usize, token: &str, keys: &Arc<Keys>) -> Option<Arc<Claims>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.get(token)?;
        let same = entry.rule == rule && Arc::ptr_eq(&entry.keys, keys);
        same.then(|| entry.claims.clone())
    }

    /// Remembers one that was found good.
    pub(super) fn keep(&self, rule: usize, token: &str, keys: &Arc<Keys>, claims: &Arc<Claims>) {
        if token.len() > LONGEST {
            return;
        }
        let entry = Entry {
            rule,
            keys: keys.clone(),
            claims: claims.clone(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            let mut keep = false;
            known.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        known.insert(token.into(), entry);
    }
}
