//! May an object be written? Pure, but for what exists beside it.
//!
//! Enters: the object as JSON. Leaves: its mistakes, and of one without mistakes the warnings.

use api::k8s::json;
use api::k8s::objects::Kind;
use serde_json::Value;

use super::{Judge, caution};

/// Admitted if there are no mistakes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) mistakes: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Judge {
    /// `old` is what is there now, if something is.
    pub(super) fn judge(
        &self,
        kind: Kind,
        object: Value,
        old: impl FnOnce() -> Option<Value>,
    ) -> Judgement {
        match json::read(kind, &object) {
            Ok(object) => Judgement {
                mistakes: Vec::new(),
                warnings: caution::of(self, &object),
            },
            Err(mistakes) if is_advised(kind) => Judgement {
                mistakes: Vec::new(),
                warnings: mistakes,
            },
            Err(mistakes) if leaving(&object) || old().is_some_and(|old| same(&object, &old)) => {
                let warnings = mistakes.into_iter();
                Judgement {
                    mistakes: Vec::new(),
                    warnings: warnings.map(|it| format!("wrong already: {it}")).collect(),
                }
            }
            Err(mistakes) => Judgement {
                mistakes,
                warnings: Vec::new(),
            },
        }
    }
}

/// Whether objects of a kind are never refused: what is wrong with a route, its status says too, and
/// other controllers may know more of it than we do.
pub(super) fn is_advised(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute
    )
}

/// An object that is being deleted must be able to lose its finalizers, whatever else it is.
fn leaving(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Whether only metadata changed. What is wrong was so before (written while we were away, or before
/// we were here); to refuse a label now would not make it better.
fn same(object: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (object.as_object(), old.as_object()) else {
        return false;
    };
    let matters = |name: &&String| !matches!(name.as_str(), "metadata" | "status");
    new.keys()
        .filter(matters)
        .all(|name| new.get(name) == old.get(name))
        && old
            .keys()
            .filter(matters)
            .all(|name| new.contains_key(name))
}
