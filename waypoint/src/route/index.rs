//! Entries for the same hosts, so indexed that few of them are asked.
//!
//! Entries stand in order of precedence, and the answer is the one that comes first. A path's way down the tree (`trie`)
//! gives the buckets in which it can be; each is in order, hence a bucket is left at the first entry that matches, or
//! that comes after the best so far. Where many rules have the same path and differ in the value of a header, the bucket
//! knows them by that value.
//!
//! An expression is in the bucket of the text that it must begin with.
//!
//! A copy is a pointer, and one entry more or less changes one bucket and the way to it.

use std::sync::Arc;

use http::header::HeaderName;

use super::order::Place;
use super::path::{How, Matched};
use super::predicate::value;
use super::rule::{Condition, Rule};
use super::trie::{Held, Trie};
use crate::asked::Asked;
use crate::filter::is_grpc;

/// One match of one rule.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) rule: Arc<Rule>,
    /// Which of its matches.
    pub(super) number: usize,
}

/// All for the same hosts.
#[derive(Debug, Clone)]
pub(super) struct Index {
    paths: Trie<Bucket>,
    /// Of those that ignore case; mostly there are none.
    folded: Option<Trie<Bucket>>,
}

/// What is for the same paths.
#[derive(Debug, Clone, Default)]
struct Bucket {
    /// In order.
    others: Vec<Entry>,
    /// By the value of one header that must be exactly that.
    by_header: Vec<(HeaderName, Values)>,
}

/// By the value of a header; each in order.
type Values = imbl::HashMap<Box<[u8]>, Vec<Entry>>;

/// In a bucket of fewer they are asked one after the other.
const FEW: usize = 8;

impl Entry {
    fn condition(&self) -> &Condition {
        &self.rule.is.conditions[self.number]
    }

    fn place(&self) -> Place<'_> {
        Place::of(&self.rule, self.number, self.condition())
    }

    /// All but what its bucket says.
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let condition = self.condition();
        let expression = match &condition.path.how {
            How::Regex(regex, _) => regex.is_match(asked.path.as_bytes()),
            _ => true,
        };
        expression
            && (!self.rule.is.grpc || is_grpc(asked.headers))
            && condition.predicate.holds(asked)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rule, &other.rule) && self.number == other.number
    }

    /// The text that leads to its bucket, and which of those there it is.
    fn bucket(&self) -> (&str, fn(&mut Held<Bucket>) -> &mut Bucket) {
        match &self.condition().path.how {
            How::Any => ("", |held| &mut held.characters),
            How::Exact(path) => (path, |held| &mut held.exact),
            How::Segments(path) => (path, |held| &mut held.segments),
            How::Characters(path) | How::Regex(_, path) => (path, |held| &mut held.characters),
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            paths: Trie::new(false),
            folded: None,
        }
    }
}

impl Index {
    pub(super) fn insert(&mut self, entry: Entry) {
        let (text, pick) = entry.bucket();
        let held = match entry.condition().path.ignore_case {
            true => self
                .folded
                .get_or_insert_with(|| Trie::new(true))
                .entry(text),
            false => self.paths.entry(text),
        };
        pick(held).insert(entry.clone());
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        let (text, pick) = entry.bucket();
        let take = |held: &mut Held<Bucket>| {
            pick(held).remove(entry);
            [&held.exact, &held.segments, &held.characters]
                .iter()
                .all(|bucket| bucket.is_empty())
        };
        if !entry.condition().path.ignore_case {
            return self.paths.take_out(text, take);
        }
        if let Some(folded) = &mut self.folded {
            folded.take_out(text, take);
        }
        self.folded.take_if(|folded| folded.is_empty());
    }

    /// There is no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.folded.is_none()
    }

    /// The first of them that matches.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<(&Arc<Rule>, Matched)> {
        let mut best = None;
        for bucket in self.paths.of(asked.path) {
            bucket.look(asked, &mut best);
        }
        if let Some(folded) = &self.folded {
            for bucket in folded.of(asked.path) {
                bucket.look(asked, &mut best);
            }
        }
        let entry = best?;
        Some((&entry.rule, entry.condition().path.matched(asked.path)))
    }
}

impl Bucket {
    fn is_empty(&self) -> bool {
        self.others.is_empty() && self.by_header.is_empty()
    }

    fn insert(&mut self, entry: Entry) {
        if self.by_header.is_empty() && self.others.len() < FEW {
            return put(&mut self.others, entry);
        }
        if self.by_header.is_empty() {
            let few = std::mem::take(&mut self.others).into_iter();
            few.for_each(|entry| self.insert_by_header(entry));
        }
        self.insert_by_header(entry);
    }

    fn insert_by_header(&mut self, entry: Entry) {
        let condition = entry.condition();
        let Some((name, value)) = condition.predicate.one_header() else {
            return put(&mut self.others, entry);
        };
        let known = self.by_header.iter().position(|(known, _)| known == name);
        let at = match known {
            Some(at) => at,
            None if self.by_header.len() < FEW => {
                self.by_header.push((name.clone(), Values::new()));
                self.by_header.len() - 1
            }
            None => return put(&mut self.others, entry),
        };
        let list = self.by_header[at].1.entry(value.into()).or_default();
        put(list, entry);
    }

    fn remove(&mut self, entry: &Entry) {
        take(&mut self.others, entry);
        let condition = entry.condition();
        let Some((name, value)) = condition.predicate.one_header() else {
            return;
        };
        for (_, values) in self.by_header.iter_mut().filter(|(known, _)| known == name) {
            if let Some(list) = values.get_mut(value) {
                take(list, entry);
                if list.is_empty() {
                    values.remove(value);
                }
            }
        }
        self.by_header.retain(|(_, values)| !values.is_empty());
    }

    /// Makes `best` the first that matches, if that comes before it.
    fn look<'a>(&'a self, asked: &Asked<'_>, best: &mut Option<&'a Entry>) {
        first(&self.others, asked, best);
        for (name, values) in &self.by_header {
            let value = value(asked.headers, name);
            if let Some(list) = value.and_then(|value| values.get(&*value)) {
                first(list, asked, best);
            }
        }
    }
}

fn put(list: &mut Vec<Entry>, entry: Entry) {
    let place = entry.place();
    let at = list.partition_point(|other| other.place() <= place);
    list.insert(at, entry);
}

fn take(list: &mut Vec<Entry>, entry: &Entry) {
    if let Some(at) = list.iter().position(|other| other.is(entry)) {
        list.remove(at);
    }
}

fn first<'a>(list: &'a [Entry], asked: &Asked<'_>, best: &mut Option<&'a Entry>) {
    for entry in list {
        if best.is_some_and(|best| best.place() <= entry.place()) {
            return;
        }
        if entry.holds(asked) {
            *best = Some(entry);
            return;
        }
    }
}
