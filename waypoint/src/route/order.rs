//! Which of several matching rules is meant (Gateway API, HTTPRouteRule.matches; GRPCRoute's order is the same one,
//! a service and method being a path).
//!
//! Rules of a consumer go before all others, and listed ones before those in order of what they say; then the host:
//! that is the table's (`table`). Here is what follows among rules for the same hosts:
//!
//! 1. a path that is one word for word, then the longest prefix; then the longest expression; then any path
//! 2. a method; more headers; more query parameters
//! 3. the older object, the object whose namespace/name comes first, the earlier rule in it
//!
//! Where expressions stand is left to implementations. Before "any path", so that one beside a catch-all rule is of use.

use std::cmp::Reverse;

use super::path::How;
use super::rule::{Condition, Rule};

/// Compares as the precedence does: less goes before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'a> {
    specific: Option<Specific>,
    created: i64,
    object: (&'a str, &'a str),
    rule: u32,
    condition: usize,
    /// Of the object: an HTTPRoute and a GRPCRoute may have one name.
    kind: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Specific {
    path: u8,
    characters: Reverse<usize>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

impl<'a> Place<'a> {
    /// Of the condition with that number in the rule.
    pub(super) fn of(rule: &'a Rule, number: usize, condition: &Condition) -> Self {
        Self {
            specific: (!rule.is.listed).then(|| Specific::of(condition)),
            created: rule.is.created,
            object: (&rule.name.namespace, &rule.name.name),
            rule: rule.is.index,
            condition: number,
            kind: &rule.name.kind,
        }
    }
}

impl Specific {
    fn of(condition: &Condition) -> Self {
        let predicate = &condition.predicate;
        Self {
            path: match condition.path.how {
                How::Exact(_) => 0,
                How::Segments(_) | How::Characters(_) => 1,
                How::Regex(..) => 2,
                How::Any => 3,
            },
            characters: Reverse(condition.written),
            method: Reverse(predicate.method.is_some()),
            headers: Reverse(predicate.headers.len()),
            query: Reverse(predicate.query.len()),
        }
    }
}
