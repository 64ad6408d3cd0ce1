//! Entries for the same hosts, so indexed that few of them are asked.
//!
//! Entries stand in order of precedence, so the answer is the one with the least number. A path's way down the tree
//! (`trie`) gives the buckets in which it can be; the numbers in each ascend, hence a bucket is left at the first entry
//! that matches, or that comes after the best so far. Where many rules have the same path and differ in the value of
//! a header, the bucket knows them by that value.
//!
//! An expression is in the bucket of the text that it must begin with.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::HeaderName;

use super::order::Place;
use super::path::{How, Matched};
use super::predicate::value;
use super::rule::{Condition, Rule};
use super::trie::Trie;
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
    entries: Box<[Entry]>,
    paths: Trie<Bucket>,
    /// Of those that ignore case; mostly there are none.
    folded: Option<Trie<Bucket>>,
}

#[derive(Debug, Clone, Default)]
struct Bucket {
    others: Box<[u32]>,
    /// By the value of one header that must be exactly that.
    by_header: Box<[(HeaderName, Values)]>,
}

/// By the value of a header.
type Values = HashMap<Box<[u8]>, Vec<u32>>;

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
}

impl Index {
    pub(super) fn of(mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|a, b| a.place().cmp(&b.place()));
        let mut paths = Trie::new(false);
        let mut folded = Trie::new(true);
        let mut folds = false;
        for (number, entry) in entries.iter().enumerate() {
            let path = &entry.condition().path;
            folds |= path.ignore_case;
            let paths: &mut Trie<Vec<u32>> = match path.ignore_case {
                true => &mut folded,
                false => &mut paths,
            };
            let list = match &path.how {
                How::Any => &mut paths.entry("").characters,
                How::Exact(path) => &mut paths.entry(path).exact,
                How::Segments(path) => &mut paths.entry(path).segments,
                How::Characters(path) | How::Regex(_, path) => &mut paths.entry(path).characters,
            };
            list.push(number as u32); // a message cannot hold 2^32 of them
        }
        let bucket = |list: Vec<u32>| Bucket::of(&list, &entries);
        Self {
            paths: paths.finish(bucket),
            folded: folds.then(|| folded.finish(bucket)),
            entries: entries.into(),
        }
    }

    /// The first of them that matches.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<(&Arc<Rule>, Matched)> {
        let mut best = self.entries.len() as u32;
        for bucket in self.paths.of(asked.path) {
            bucket.look(&self.entries, asked, &mut best);
        }
        if let Some(folded) = &self.folded {
            for bucket in folded.of(asked.path) {
                bucket.look(&self.entries, asked, &mut best);
            }
        }
        let entry = self.entries.get(best as usize)?;
        Some((&entry.rule, entry.condition().path.matched(asked.path)))
    }
}

impl Bucket {
    fn of(list: &[u32], entries: &[Entry]) -> Self {
        if list.len() <= FEW {
            return Self {
                others: list.into(),
                by_header: Box::default(),
            };
        }
        let mut others = Vec::new();
        let mut by_header: Vec<(HeaderName, Values)> = Vec::new();
        for number in list {
            let condition = entries[*number as usize].condition();
            let Some((name, value)) = condition.predicate.one_header() else {
                others.push(*number);
                continue;
            };
            let known = by_header.iter().position(|(known, _)| known == name);
            let at = match known {
                Some(at) => at,
                None if by_header.len() < FEW => {
                    by_header.push((name.clone(), HashMap::new()));
                    by_header.len() - 1
                }
                None => {
                    others.push(*number);
                    continue;
                }
            };
            by_header[at]
                .1
                .entry(value.into())
                .or_default()
                .push(*number);
        }
        Self {
            others: others.into(),
            by_header: by_header.into(),
        }
    }

    /// Makes `best` the number of the first that matches, if that is less.
    fn look(&self, entries: &[Entry], asked: &Asked<'_>, best: &mut u32) {
        first(&self.others, entries, asked, best);
        for (name, values) in &self.by_header {
            let value = value(asked.headers, name);
            if let Some(list) = value.and_then(|value| values.get(&*value)) {
                first(list, entries, asked, best);
            }
        }
    }
}

fn first(list: &[u32], entries: &[Entry], asked: &Asked<'_>, best: &mut u32) {
    for number in list {
        if *number >= *best {
            return;
        }
        if entries[*number as usize].holds(asked) {
            *best = *number;
            return;
        }
    }
}
