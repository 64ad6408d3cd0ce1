//! All rules of one service's port, or of one listener.

use std::sync::Arc;

use api::waypoint as wire;

use super::hosts::Hosts;
use super::index::{Entry, Index};
use super::path::Matched;
use super::rule::Rule;
use crate::asked::Asked;

/// Which rule is for a request. A copy is a pointer and shares what is equal: to take a rule out of it or put one in costs
/// what that rule says, however many others there are.
#[derive(Debug, Clone, Default)]
pub struct Table {
    consumers: imbl::HashMap<Box<str>, Tiers>,
    all: Tiers,
    rules: imbl::OrdMap<Which, Arc<Rule>>,
}

/// By its label. Two of one label are told apart by where they are in memory.
type Which = (Arc<str>, usize);

/// Listed rules go before those in order of what they say.
#[derive(Debug, Clone, Default)]
struct Tiers {
    listed: Hosts<Index>,
    specific: Hosts<Index>,
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
        let mut table = Self::default();
        rules.into_iter().for_each(|rule| table.insert(rule));
        table
    }

    /// One more.
    pub fn insert(&mut self, rule: Arc<Rule>) {
        let tiers = match &rule.is.consumer {
            Some(namespace) => self.consumers.entry(namespace.clone()).or_default(),
            None => &mut self.all,
        };
        tiers.insert(&rule);
        self.rules.insert(which(&rule), rule);
    }

    /// One less. Nothing, if it is not in it.
    pub fn remove(&mut self, rule: &Arc<Rule>) {
        if self.rules.remove(&which(rule)).is_none() {
            return;
        }
        match &rule.is.consumer {
            None => self.all.remove(rule),
            Some(namespace) => {
                let own = self.consumers.get_mut(namespace);
                let is_empty = own.is_some_and(|tiers| {
                    tiers.remove(rule);
                    tiers.is_empty()
                });
                if is_empty {
                    self.consumers.remove(namespace);
                }
            }
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

    /// Whether clients of a namespace are under rules here: where they are, what no rule is for is nowhere.
    pub fn concerns(&self, namespace: Option<&str>) -> bool {
        let own = |namespace| self.consumers.contains_key(namespace);
        !self.all.is_empty() || namespace.is_some_and(own)
    }

    /// There is none: whoever has no rules goes to the service itself.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// All rules, in the order of their labels.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.values()
    }
}

fn which(rule: &Arc<Rule>) -> Which {
    (rule.label.clone(), Arc::as_ptr(rule).addr())
}

impl Tiers {
    fn insert(&mut self, rule: &Arc<Rule>) {
        let hosts = self.of(rule);
        for entry in entries(rule) {
            for host in &rule.is.hostnames {
                hosts.entry(Some(host)).insert(entry.clone());
            }
            if rule.is.hostnames.is_empty() {
                hosts.entry(None).insert(entry);
            }
        }
    }

    fn remove(&mut self, rule: &Arc<Rule>) {
        let hosts = self.of(rule);
        for entry in entries(rule) {
            let take = |index: &mut Index| {
                index.remove(&entry);
                index.is_empty()
            };
            for host in &rule.is.hostnames {
                hosts.take_out(Some(host), take);
            }
            if rule.is.hostnames.is_empty() {
                hosts.take_out(None, take);
            }
        }
    }

    fn of(&mut self, rule: &Rule) -> &mut Hosts<Index> {
        match rule.is.listed {
            true => &mut self.listed,
            false => &mut self.specific,
        }
    }

    fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.specific.is_empty()
    }

    fn find<'a>(&'a self, asked: &Asked<'_>) -> Option<Found<'a>> {
        let tiers = [&self.listed, &self.specific].into_iter();
        let mut indexes = tiers.flat_map(|hosts| hosts.of(asked.host));
        let (rule, matched) = indexes.find_map(|index| index.find(asked))?;
        Some(Found { rule, matched })
    }
}

/// One for each of its matches.
fn entries(rule: &Arc<Rule>) -> impl Iterator<Item = Entry> {
    let entry = |number| Entry {
        rule: rule.clone(),
        number,
    };
    (0..rule.is.conditions.len()).map(entry)
}
