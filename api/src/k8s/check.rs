//! What types cannot say: the refusals of an API server with Istio's definitions and webhook.
//!
//! Enters: an object that reads well ([`check`]), or one as JSON ([`check_shape`]). Leaves: its
//! [`Problem`]s, each with the path of its field.
//! Kubernetes' own kinds are checked as far as we rely on them; the rest is kubelet's business.

mod layer7;
mod metadata;
mod policy;
mod service_entry;
mod shape;
pub(in crate::k8s) mod words;

use std::fmt;

use serde_json::Value;

use super::objects::{Kind, Object};

/// Something wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: Path,
    /// What.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// The way from the top of an object to a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(pub Vec<Step>);

/// One step of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a map.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl Path {
    pub(super) fn key(&self, name: &str) -> Path {
        self.with(Step::Key(name.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Path {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Path {
        let mut steps = self.0.clone();
        steps.push(step);
        Path(steps)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Everything wrong with an object; nothing if it may enter.
pub fn check(object: &Object) -> Vec<Problem> {
    let mut problems = Problems::default();
    metadata::check(object, &mut problems);
    match object {
        Object::ServiceEntry(entry) => service_entry::check(entry, &mut problems),
        Object::WorkloadEntry(entry) => service_entry::check_workload_entry(entry, &mut problems),
        Object::WorkloadGroup(group) => service_entry::check_workload_group(group, &mut problems),
        Object::AuthorizationPolicy(policy) => policy::check(policy, &mut problems),
        Object::PeerAuthentication(policy) => {
            policy::check_peer_authentication(policy, &mut problems)
        }
        object => layer7::check(object, &mut problems),
    }
    problems.0
}

/// Everything wrong with the fields of an object of `kind` that could not be read as its type, or
/// that a reader would pass over: [`shape`].
pub fn check_shape(kind: Kind, object: &Value) -> Vec<Problem> {
    let mut problems = Problems::default();
    shape::check(kind, object, &mut problems);
    problems.0
}

/// The problems found so far.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    /// Beyond [`MOST`] nothing is added: somebody may have written a million of them on purpose.
    fn add(&mut self, path: Path, reason: impl Into<String>) {
        if self.full() {
            return;
        }
        self.0.push(Problem {
            path,
            reason: reason.into(),
        });
    }

    fn full(&self) -> bool {
        self.0.len() >= MOST
    }
}

/// Problems of one object that are told.
const MOST: usize = 64;

fn spec() -> Path {
    Path::default().key("spec")
}
