//! What became of a waypoint's deployment, laid over what the world has to say of its Gateway.

use std::sync::Arc;

use api::k8s::objects::ObjectKey;

use crate::status::{Book, Condition, Desired};

/// Of each Gateway that there is something to say of.
pub type Notes = imbl::OrdMap<ObjectKey, Note>;

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Its label says that another control plane looks after it: so its status is not ours either.
    Elsewhere,
    /// Its parameters cannot be followed; what runs goes on as it was.
    Invalid(String),
    /// Something in the cluster is in the way.
    Blocked(String),
    /// It is there; its pods are not yet, or not all.
    Pending(String),
}

/// The book with the notes laid over it.
pub fn laid(book: &Book, notes: &Notes) -> Book {
    let mut laid = book.clone();
    for (key, note) in notes {
        let Some(desired) = book.get(key) else {
            continue;
        };
        match note.over(desired) {
            Some(desired) => drop(laid.insert(key.clone(), Arc::new(desired))),
            None => drop(laid.remove(key)),
        }
    }
    laid
}

impl Note {
    /// For people.
    pub fn text(&self) -> &str {
        match self {
            Self::Elsewhere => "another control plane looks after it",
            Self::Invalid(why) | Self::Blocked(why) | Self::Pending(why) => why,
        }
    }

    /// None: nothing shall be said.
    fn over(&self, desired: &Desired) -> Option<Desired> {
        let mut desired = desired.clone();
        let conditions = &mut desired.conditions;
        match self {
            Self::Elsewhere => return None,
            Self::Invalid(why) => {
                say(conditions, "Accepted", "InvalidParameters", why);
                say(conditions, "Programmed", "Invalid", why);
            }
            Self::Blocked(why) => say(conditions, "Programmed", "NoResources", why),
            Self::Pending(why) => {
                // One that had an address keeps it: its clients know where it will be again.
                let waits = |it: &&mut Condition| it.r#type == "Programmed" && !it.status;
                if let Some(waiting) = conditions.iter_mut().find(waits) {
                    waiting.reason = "Pending".to_owned();
                    waiting.message.clone_from(why);
                }
            }
        }
        Some(desired)
    }
}

fn say(conditions: &mut [Condition], r#type: &str, reason: &str, message: &str) {
    if let Some(condition) = conditions.iter_mut().find(|it| it.r#type == r#type) {
        condition.status = false;
        condition.reason = reason.to_owned();
        condition.message = message.to_owned();
    }
}
