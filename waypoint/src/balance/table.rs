//! Taking one of several by weight: at random, in turn, by hash.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::hash;

/// Weights, for draws.
#[derive(Debug)]
pub(super) enum Weights {
    /// Of so many, all alike.
    Equal(usize),
    /// Sums up to and including each.
    Sums(Box<[u64]>),
}

impl Weights {
    pub(super) fn new(weights: &[u64]) -> Self {
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Equal(weights.len());
        }
        let mut sum = 0;
        let sums = weights.iter().map(|weight| {
            sum += weight;
            sum
        });
        Self::Sums(sums.collect())
    }

    /// That of one of them, relative to the others.
    pub(super) fn of(&self, at: usize) -> u64 {
        match self {
            Self::Equal(_) => 1,
            Self::Sums(sums) => {
                let sum = |at: usize| sums.get(at).copied().unwrap_or_default();
                sum(at) - at.checked_sub(1).map_or(0, sum)
            }
        }
    }

    /// The one that a random number takes.
    pub(super) fn at(&self, draw: u64) -> Option<usize> {
        match self {
            Self::Equal(0) => None,
            Self::Equal(count) => Some(scaled(draw, *count as u64) as usize),
            Self::Sums(sums) => {
                let point = scaled(draw, *sums.last()?);
                Some(sums.partition_point(|sum| *sum <= point))
            }
        }
    }
}

/// From all of u64 to less than `below`, without division.
fn scaled(draw: u64, below: u64) -> u64 {
    ((u128::from(draw) * u128::from(below)) >> 64) as u64
}

/// The order in which they have their turns: each as often as its weight says, and as evenly as that can be done.
#[derive(Debug)]
pub(super) enum Turns {
    /// One after the other.
    Plain(usize),
    /// As listed.
    Listed(Box<[u32]>),
}

impl Turns {
    pub(super) fn new(weights: &[u64]) -> Self {
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Plain(weights.len());
        }
        let weights = small(weights, weights.len() * 4 + 1_024);
        // Whose turn is due first: the n-th of one with weight w is due at n/w, compared as n * (all / w).
        let due = |turn: u64, weight: u64| (u128::from(turn) << 64) / u128::from(weight.max(1));
        let mut queue: BinaryHeap<Reverse<(u128, u32, u64)>> = weights
            .iter()
            .enumerate()
            .map(|(at, weight)| Reverse((due(1, *weight), at as u32, 1)))
            .collect();
        let total: u64 = weights.iter().sum();
        let mut listed = Vec::with_capacity(total as usize);
        while (listed.len() as u64) < total
            && let Some(Reverse((_, at, turn))) = queue.pop()
        {
            listed.push(at);
            queue.push(Reverse((due(turn + 1, weights[at as usize]), at, turn + 1)));
        }
        Self::Listed(listed.into())
    }

    /// Whose turn it is.
    pub(super) fn at(&self, turn: usize) -> Option<usize> {
        match self {
            Self::Plain(0) => None,
            Self::Plain(count) => Some(turn % count),
            Self::Listed(listed) => {
                let turn = turn.checked_rem(listed.len())?;
                Some(listed[turn] as usize)
            }
        }
    }
}

/// The same weights in small numbers: their sum is at most `most`, and none is 0.
fn small(weights: &[u64], most: usize) -> Vec<u64> {
    let divisor = weights
        .iter()
        .fold(0, |divisor, weight| gcd(divisor, *weight))
        .max(1);
    let total: u64 = weights.iter().map(|weight| weight / divisor).sum();
    if total <= most as u64 {
        return weights.iter().map(|weight| weight / divisor).collect();
    }
    let room = (most - weights.len()) as u128; // each gets one for itself first
    let shrunk = |weight: &u64| {
        let part = u128::from(weight / divisor) * room / u128::from(total);
        (part as u64).max(1)
    };
    weights.iter().map(shrunk).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Points on a ring; a key belongs to the next point.
#[derive(Debug)]
pub(super) struct Ring(Box<[(u64, u32)]>);

impl Ring {
    /// Each gets points as its weight says, at least one; all together at least `size` and at most twice that and one
    /// more each. `named` are names that stay the same.
    ///
    /// How many points a weight is worth changes only when all weights together pass a power of two: mostly, when one
    /// comes or goes, no key moves between two others.
    pub(super) fn new(named: &[(&str, u64)], size: usize) -> Self {
        let total: u64 = named.iter().map(|(_, weight)| weight).sum::<u64>().max(1);
        let total = 1_u64 << total.ilog2();
        let mut points = Vec::with_capacity(size * 2 + named.len());
        for (at, (name, weight)) in named.iter().enumerate() {
            let share = u128::from(*weight) * size as u128;
            let count = share.div_ceil(u128::from(total)).max(1) as u64;
            let own = hash::text(name.as_bytes());
            points.extend((0..count).map(|nth| (hash::mixed(own ^ hash::mixed(nth)), at as u32)));
        }
        points.sort_unstable();
        Self(points.into())
    }

    pub(super) fn at(&self, key: u64) -> Option<usize> {
        let next = self.0.partition_point(|(point, _)| *point < key);
        let (_, at) = self.0.get(next).or_else(|| self.0.first())?;
        Some(*at as usize)
    }
}

/// Google's Maglev: a table in which everybody has as many places as its weight says, and keeps nearly all of them
/// when others come and go.
#[derive(Debug)]
pub(super) struct Maglev(Box<[u32]>);

impl Maglev {
    /// `size` is a prime.
    pub(super) fn new(named: &[(&str, u64)], size: usize) -> Self {
        let heaviest = named.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
        if heaviest == 0 {
            return Self(Box::default());
        }
        let size = size as u64;
        // Each walks the table in an order of its own: start, step, step … (size is prime, so all places are met).
        let mut walks: Vec<(u64, u64)> = named
            .iter()
            .map(|(name, _)| {
                let own = hash::text(name.as_bytes());
                (own % size, hash::mixed(own) % (size - 1).max(1) + 1)
            })
            .collect();
        let mut places = vec![FREE; size as usize];
        let mut credit = vec![0_u64; named.len()];
        let mut filled = 0;
        while filled < size {
            for (at, (_, weight)) in named.iter().enumerate() {
                credit[at] += weight;
                if credit[at] < heaviest || filled == size {
                    continue; // lighter ones take a place in fewer rounds
                }
                credit[at] -= heaviest;
                let (place, step) = &mut walks[at];
                while places[*place as usize] != FREE {
                    *place = (*place + *step) % size;
                }
                places[*place as usize] = at as u32;
                filled += 1;
            }
        }
        Self(places.into())
    }

    pub(super) fn at(&self, key: u64) -> Option<usize> {
        let place = key.checked_rem(self.0.len() as u64)?;
        Some(self.0[place as usize] as usize)
    }
}

const FREE: u32 = u32::MAX;
