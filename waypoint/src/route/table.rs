//! All rules of one service's port, or of one listener.

use std::collections::HashMap;
use std::sync::Arc;

use api::waypoint as wire;

use super::hosts::Hosts;
use super::index::{Entry, Index};
use super::path::Matched;
use super::rule::Rule;
use crate::asked::Asked;

/// Which rule is for a request. Immutable: an edit makes another one of the same rules.
#[derive(Debug, Clone, Default)]
pub struct Table {
    consumers: HashMap<Box<str>, Tiers<Index>>,
    all: Tiers<Index>,
    rules: Box<[Arc<Rule>]>,
}

/// Listed rules go before those in order of what they say.
#[derive(Debug, Clone)]
struct Tiers<T> {
    listed: Hosts<T>,
    specific: Hosts<T>,
}

impl<T> Default for Tiers<T> {
    fn default() -> Self {
        Self {
            listed: Hosts::default(),
            specific: Hosts::default(),
        }
    }
}

/// The rule that is for a request.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// It.
    pub rule: &'a Arc<Rule>,
    /// What part of the path its match was about.
    pub matched: Matched,
}

impl Table {
    /// Of messages, in any order. A rule that cannot be understood is in it and answers 500 ([`Rule::closed`]).
    pub fn compile(rules: &[(&wire::Origin, &wire::Route)]) -> Self {
        let rules = rules.iter();
        Self::of(rules.map(|(origin, wire)| Arc::new(Rule::understand(origin, wire))))
    }

    /// Of rules that are compiled already, in any order.
    pub fn of(rules: impl IntoIterator<Item = Arc<Rule>>) -> Self {
        let rules: Box<[_]> = rules.into_iter().collect();
        let mut consumers: HashMap<Box<str>, Tiers<Vec<Entry>>> = HashMap::new();
        let mut all = Tiers::default();
        for rule in &rules {
            let tiers = match &rule.is.consumer {
                Some(namespace) => consumers.entry(namespace.clone()).or_default(),
                None => &mut all,
            };
            tiers.add(rule);
        }
        let consumers = consumers.into_iter();
        Self {
            consumers: consumers
                .map(|(namespace, tiers)| (namespace, tiers.index()))
                .collect(),
            all: all.index(),
            rules,
        }
    }

    /// The rule that is for this request. A consumer's own go first, and where none of them matches, the others.
    pub fn find(&self, asked: &Asked<'_>) -> Option<Found<'_>> {
        let own = match self.consumers.is_empty() {
            true => None,
            false => asked.client.namespace(),
        };
        let own = own.and_then(|namespace| self.consumers.get(namespace));
        let mut tiers = own.into_iter().chain([&self.all]);
        tiers.find_map(|tiers| tiers.find(asked))
    }

    /// There is none: whoever has no rules goes to the service itself.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// All rules, in the order in which they came.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }
}

impl Tiers<Vec<Entry>> {
    fn add(&mut self, rule: &Arc<Rule>) {
        let hosts = match rule.is.listed {
            true => &mut self.listed,
            false => &mut self.specific,
        };
        for number in 0..rule.is.conditions.len() {
            let entry = Entry {
                rule: rule.clone(),
                number,
            };
            for host in &rule.is.hostnames {
                hosts.entry(Some(host)).push(entry.clone());
            }
            if rule.is.hostnames.is_empty() {
                hosts.entry(None).push(entry);
            }
        }
    }

    fn index(self) -> Tiers<Index> {
        Tiers {
            listed: self.listed.map(Index::of),
            specific: self.specific.map(Index::of),
        }
    }
}

impl Tiers<Index> {
    fn find<'a>(&'a self, asked: &Asked<'_>) -> Option<Found<'a>> {
        let tiers = [&self.listed, &self.specific].into_iter();
        let mut indexes = tiers.flat_map(|hosts| hosts.of(asked.host));
        let (rule, matched) = indexes.find_map(|index| index.find(asked))?;
        Some(Found { rule, matched })
    }
}
