//! Tokens that were found good, so that a signature is checked once and not with every request.
//!
//! A token is known by all of its text and the very key set that signed it: when the keys change, none is known. What
//! else a rule asks (issuer, audience, time) is asked each time. There is one memory in a process, bounded whatever is
//! configured and sent; when there is no room, half of it is forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use super::Claims;
use super::keys::Keys;

/// Tokens are spread over so many, each behind a lock of its own.
const SHELVES: usize = 16;
/// Most tokens of a shelf.
const MOST: usize = 128;
/// Longest token that is kept, in bytes.
const LONGEST: usize = 4096;

/// Good tokens by their text.
#[derive(Debug, Default)]
pub(super) struct Seen {
    random: RandomState,
    shelves: [Mutex<HashMap<Box<str>, Entry>>; SHELVES],
}

#[derive(Debug)]
struct Entry {
    keys: Arc<Keys>,
    /// Its claims that were split.
    lists: Box<[Box<str>]>,
    claims: Arc<Claims>,
}

impl Seen {
    /// What it says, if these keys signed it.
    pub(super) fn find(
        &self,
        token: &str,
        keys: &Arc<Keys>,
        lists: &[Box<str>],
    ) -> Option<Arc<Claims>> {
        let shelf = self
            .shelf(token)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = shelf.get(token)?;
        let same = Arc::ptr_eq(&entry.keys, keys) && *entry.lists == *lists;
        same.then(|| entry.claims.clone())
    }

    /// Remembers one that these keys signed.
    pub(super) fn keep(
        &self,
        token: &str,
        keys: &Arc<Keys>,
        lists: &[Box<str>],
        claims: &Arc<Claims>,
    ) {
        if token.len() > LONGEST {
            return;
        }
        let entry = Entry {
            keys: keys.clone(),
            lists: lists.into(),
            claims: claims.clone(),
        };
        let mut shelf = self
            .shelf(token)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if shelf.len() >= MOST {
            let mut keep = false;
            shelf.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        shelf.insert(token.into(), entry);
    }

    fn shelf(&self, token: &str) -> &Mutex<HashMap<Box<str>, Entry>> {
        let number = self.random.hash_one(token) % SHELVES as u64;
        let number = usize::try_from(number).unwrap_or_default();
        &self.shelves[number]
    }
}
