//! Several may claim one name or address; the best claim comes first.
//!
//! Nearly always there is one: then nothing but its pointer is stored.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

/// A list that is never empty, ordered by what the caller calls better.
#[derive(Debug)]
pub(crate) enum Claims<T> {
    One(Arc<T>),
    Many(Arc<Vec<Arc<T>>>),
}

// Not derived: a claim is shared, whether it can be cloned or not.
impl<T> Clone for Claims<T> {
    fn clone(&self) -> Self {
        match self {
            Self::One(one) => Self::One(one.clone()),
            Self::Many(many) => Self::Many(many.clone()),
        }
    }
}

/// Whether they are the very same claims.
impl<T> PartialEq for Claims<T> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(one), Self::One(other)) => Arc::ptr_eq(one, other),
            (Self::Many(many), Self::Many(other)) => Arc::ptr_eq(many, other),
            (Self::One(_), Self::Many(_)) | (Self::Many(_), Self::One(_)) => false,
        }
    }
}

impl<T> Claims<T> {
    pub(crate) fn as_slice(&self) -> &[Arc<T>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    pub(crate) fn first(&self) -> &Arc<T> {
        match self {
            Self::One(one) => one,
            Self::Many(many) => &many[0],
        }
    }

    /// Puts a claim in its place; `better(a, b)` must be a strict total order.
    pub(crate) fn insert(&mut self, claim: Arc<T>, better: impl Fn(&T, &T) -> bool) {
        let mut all = self.as_slice().to_vec();
        let place = all.partition_point(|held| better(held, &claim));
        all.insert(place, claim);
        *self = Self::Many(Arc::new(all));
    }

    /// What is left without the claims that `gone` names; `None` when nothing is.
    pub(crate) fn without(&self, gone: impl Fn(&T) -> bool) -> Option<Self> {
        let mut left: Vec<_> = self
            .as_slice()
            .iter()
            .filter(|claim| !gone(claim))
            .cloned()
            .collect();
        match left.len() {
            0 => None,
            1 => left.pop().map(Self::One),
            _ => Some(Self::Many(Arc::new(left))),
        }
    }
}

impl<T: Clone> Claims<T> {
    /// The claim that `wanted` names, to be changed; must not change its place in the order.
    pub(crate) fn find_mut(&mut self, wanted: impl Fn(&T) -> bool) -> Option<&mut T> {
        match self {
            Self::One(one) => Some(one).filter(|one| wanted(one)).map(Arc::make_mut),
            Self::Many(many) => Arc::make_mut(many)
                .iter_mut()
                .find(|claim| wanted(claim))
                .map(Arc::make_mut),
        }
    }
}

/// Claims by IP. Two ordered maps of plain integers: where workloads are counted by the 100,000, a
/// map keyed by `IpAddr` takes twice as much, and a hash map of imbl six times.
#[derive(Debug)]
pub(crate) struct ByIp<T> {
    v4: OrdMap<u32, Claims<T>>,
    v6: OrdMap<u128, Claims<T>>,
}

impl<T> Clone for ByIp<T> {
    fn clone(&self) -> Self {
        Self {
            v4: self.v4.clone(),
            v6: self.v6.clone(),
        }
    }
}

impl<T> Default for ByIp<T> {
    fn default() -> Self {
        Self {
            v4: OrdMap::new(),
            v6: OrdMap::new(),
        }
    }
}

impl<T> ByIp<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(crate) fn get(&self, ip: IpAddr) -> Option<&Claims<T>> {
        match ip {
            IpAddr::V4(ip) => self.v4.get(&ip.to_bits()),
            IpAddr::V6(ip) => self.v6.get(&ip.to_bits()),
        }
    }

    pub(crate) fn claim(&mut self, ip: IpAddr, by: Arc<T>, better: impl Fn(&T, &T) -> bool) {
        match ip {
            IpAddr::V4(ip) => claim(&mut self.v4, ip.to_bits(), by, better),
            IpAddr::V6(ip) => claim(&mut self.v6, ip.to_bits(), by, better),
        }
    }

    pub(crate) fn disclaim(&mut self, ip: IpAddr, gone: impl Fn(&T) -> bool) {
        match ip {
            IpAddr::V4(ip) => disclaim(&mut self.v4, &ip.to_bits(), gone),
            IpAddr::V6(ip) => disclaim(&mut self.v6, &ip.to_bits(), gone),
        }
    }
}

/// Inserts under a key, as the only claim or in its place among the others.
pub(crate) fn claim<K: Clone + Ord, T>(
    map: &mut OrdMap<K, Claims<T>>,
    key: K,
    by: Arc<T>,
    better: impl Fn(&T, &T) -> bool,
) {
    // Nearly always it is the only one: one way through the tree, not two.
    if let Some(mut claims) = map.insert(key.clone(), Claims::One(by.clone())) {
        claims.insert(by, better);
        map.insert(key, claims);
    }
}

/// Removes from under a key the claims that `gone` names, and the key with the last of them.
pub(crate) fn disclaim<K: Clone + Ord, T>(
    map: &mut OrdMap<K, Claims<T>>,
    key: &K,
    gone: impl Fn(&T) -> bool,
) {
    let Some(claims) = map.get(key) else { return };
    match claims.without(gone) {
        Some(left) => {
            map.insert(key.clone(), left);
        }
        None => {
            map.remove(key);
        }
    }
}
