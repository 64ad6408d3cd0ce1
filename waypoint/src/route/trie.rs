//! Things by the beginnings of paths.
//!
//! A radix tree: an edge is a piece of text, and a node stands for all the text down to it. What is found for a path lies
//! on one way from the root, so the cost is the path's length, however many paths there are. A copy is a pointer, and a
//! change makes anew only the nodes on its way: copies share the rest.

use std::sync::Arc;

/// For one beginning, three things that differ in what may follow it.
#[derive(Debug, Clone, Default)]
pub(super) struct Held<T> {
    /// Nothing.
    pub(super) exact: T,
    /// Nothing, or a slash.
    pub(super) segments: T,
    /// Anything.
    pub(super) characters: T,
}

/// The tree.
#[derive(Debug, Clone)]
pub(super) struct Trie<T> {
    root: Arc<Node<T>>,
    /// Paths are compared without case; keys are in lower case then.
    fold: bool,
}

#[derive(Debug, Clone)]
struct Node<T> {
    /// Text between the node above and this one.
    edge: Box<[u8]>,
    /// By the first byte of their edges, in order.
    children: Vec<(u8, Arc<Node<T>>)>,
    held: Option<Box<Held<T>>>,
}

impl<T: Clone + Default> Trie<T> {
    pub(super) fn new(fold: bool) -> Self {
        Self {
            root: Arc::new(Node::new(&[])),
            fold,
        }
    }

    /// Nothing is held for any beginning.
    pub(super) fn is_empty(&self) -> bool {
        self.root.held.is_none() && self.root.children.is_empty()
    }

    /// What is held for that beginning, to be added to.
    pub(super) fn entry(&mut self, key: &str) -> &mut Held<T> {
        let key = self.folded(key);
        let (mut node, mut rest) = (Arc::make_mut(&mut self.root), &*key);
        while let Some(first) = rest.first() {
            match node.child(*first) {
                Err(place) => {
                    let new = (*first, Arc::new(Node::new(rest)));
                    node.children.insert(place, new);
                    (node, rest) = (node.down(place), &[]);
                }
                Ok(place) => {
                    let child = node.down(place);
                    let common = child.edge.iter().zip(rest).take_while(|(a, b)| a == b);
                    let common = common.count();
                    if common < child.edge.len() {
                        child.split(common);
                    }
                    (node, rest) = (child, &rest[common..]);
                }
            }
        }
        node.held.get_or_insert_default()
    }

    /// Lets `take` take something out of what is held for that beginning, and say whether nothing is left.
    pub(super) fn take_out(&mut self, key: &str, take: impl FnOnce(&mut Held<T>) -> bool) {
        let key = self.folded(key);
        let Some(way) = self.root.way(&key) else {
            return;
        };
        let node = self.at(&way);
        let Some(held) = node.held.as_mut() else {
            return;
        };
        if !take(held) {
            return;
        }
        node.held = None;
        let Some((last, above)) = way.split_last() else {
            return;
        };
        if !node.children.is_empty() {
            return node.join();
        }
        let parent = self.at(above);
        parent.children.remove(*last);
        if !above.is_empty() {
            parent.join();
        }
    }

    fn at(&mut self, way: &[usize]) -> &mut Node<T> {
        let root = Arc::make_mut(&mut self.root);
        way.iter().fold(root, |node, place| node.down(*place))
    }

    fn folded(&self, key: &str) -> Box<[u8]> {
        match self.fold {
            true => key.to_ascii_lowercase().into_bytes().into(),
            false => key.as_bytes().into(),
        }
    }
}

impl<T: Clone> Node<T> {
    fn new(edge: &[u8]) -> Self {
        Self {
            edge: edge.into(),
            children: Vec::new(),
            held: None,
        }
    }

    /// The place of the child whose edge begins with this byte, or where it would be.
    fn child(&self, first: u8) -> Result<usize, usize> {
        self.children
            .binary_search_by_key(&first, |(byte, _)| *byte)
    }

    fn down(&mut self, place: usize) -> &mut Self {
        Arc::make_mut(&mut self.children[place].1)
    }

    /// Places of the nodes that lead to the one of this text.
    fn way(&self, mut rest: &[u8]) -> Option<Vec<usize>> {
        let (mut node, mut way) = (self, Vec::new());
        while let Some(first) = rest.first() {
            let place = node.child(*first).ok()?;
            node = &node.children[place].1;
            rest = rest.strip_prefix(&*node.edge)?;
            way.push(place);
        }
        Some(way)
    }

    /// Cuts the edge: the upper part is this node's, the lower one that of its child, which gets all that this one had.
    fn split(&mut self, common: usize) {
        let lower = Self {
            edge: self.edge[common..].into(),
            children: std::mem::take(&mut self.children),
            held: self.held.take(),
        };
        self.children = vec![(lower.edge[0], Arc::new(lower))];
        self.edge = self.edge[..common].into();
    }

    /// A node that holds nothing and has one child is one with it.
    fn join(&mut self) {
        if self.held.is_some() || self.children.len() > 1 {
            return;
        }
        if let Some((_, child)) = self.children.pop() {
            let child = Arc::unwrap_or_clone(child);
            self.edge = [&*self.edge, &*child.edge].concat().into();
            self.children = child.children;
            self.held = child.held;
        }
    }
}

impl<T> Trie<T> {
    /// All that is for this path, the longest beginning first.
    pub(super) fn of<'t, 'p>(
        &'t self,
        path: &'p str,
    ) -> impl Iterator<Item = &'t T> + use<'t, 'p, T> {
        let path = path.as_bytes();
        self.way(path).up().flat_map(move |(held, depth)| {
            let next = path.get(depth);
            let segment = matches!(next, None | Some(b'/'));
            let exact = next.is_none().then_some(&held.exact);
            let segments = segment.then_some(&held.segments);
            let characters = Some(&held.characters);
            exact.into_iter().chain(segments).chain(characters)
        })
    }

    fn way<'a>(&'a self, path: &[u8]) -> Way<'a, T> {
        let mut way = Way::default();
        let (mut node, mut depth) = (&*self.root, 0);
        loop {
            if let Some(held) = node.held.as_deref() {
                way.push((held, depth));
            }
            let Some(first) = path.get(depth) else {
                return way;
            };
            let first = match self.fold {
                true => first.to_ascii_lowercase(),
                false => *first,
            };
            let children = &node.children;
            let Ok(place) = children.binary_search_by_key(&first, |(byte, _)| *byte) else {
                return way;
            };
            let child = &*children[place].1;
            let text = path.get(depth..depth + child.edge.len());
            let leads = text.is_some_and(|text| match self.fold {
                true => text.eq_ignore_ascii_case(&child.edge),
                false => *text == *child.edge,
            });
            if !leads {
                return way;
            }
            depth += child.edge.len();
            node = child;
        }
    }
}

/// What is held on a path's way down, and how long the text is down to there. Mostly it is two or three, and nothing is
/// allocated.
struct Way<'a, T> {
    first: [Option<(&'a Held<T>, usize)>; FEW],
    count: usize,
    more: Vec<(&'a Held<T>, usize)>,
}

/// Beginnings of one path that are each another's beginning.
const FEW: usize = 8;

impl<T> Default for Way<'_, T> {
    fn default() -> Self {
        Self {
            first: [None; FEW],
            count: 0,
            more: Vec::new(),
        }
    }
}

impl<'a, T> Way<'a, T> {
    fn push(&mut self, found: (&'a Held<T>, usize)) {
        match self.first.get_mut(self.count) {
            Some(place) => {
                *place = Some(found);
                self.count += 1;
            }
            None => self.more.push(found),
        }
    }

    fn up(self) -> impl Iterator<Item = (&'a Held<T>, usize)> {
        let first = self.first.into_iter().take(self.count).rev().flatten();
        self.more.into_iter().rev().chain(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = String> {
        "(/[ab]{1,2}){0,4}|[/aB]{0,12}"
    }

    /// Numbers held as characters' beginnings of a path.
    fn found(trie: &Trie<Vec<usize>>, path: &str) -> Vec<usize> {
        let mut found: Vec<usize> = trie.of(path).flatten().copied().collect();
        found.sort_unstable();
        found
    }

    fn put(trie: &mut Trie<Vec<usize>>, key: &str, number: usize) {
        trie.entry(key).characters.push(number);
    }

    fn take(trie: &mut Trie<Vec<usize>>, key: &str, number: usize) {
        trie.take_out(key, |held| {
            held.characters.retain(|other| *other != number);
            held.characters.is_empty()
        });
    }

    fn nodes(node: &Node<Vec<usize>>) -> usize {
        1 + node
            .children
            .iter()
            .map(|(_, child)| nodes(child))
            .sum::<usize>()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_tree_that_was_changed_is_as_one_that_was_made_so(
            keys in prop::collection::vec((key(), any::<bool>()), 0..30),
            paths in prop::collection::vec(key(), 20),
            fold in any::<bool>(),
        ) {
            let (mut changed, mut made) = (Trie::new(fold), Trie::new(fold));
            for (number, (key, _)) in keys.iter().enumerate() {
                put(&mut changed, key, number);
            }
            let whole = changed.clone();
            for (number, (key, stays)) in keys.iter().enumerate() {
                if *stays {
                    put(&mut made, key, number);
                } else {
                    take(&mut changed, key, number);
                }
            }
            let begins = |path: &str, key: &str| match fold {
                true => path.to_lowercase().starts_with(&key.to_lowercase()),
                false => path.starts_with(key),
            };
            for path in &paths {
                prop_assert_eq!(found(&changed, path), found(&made, path), "{}", path);
                let numbers = keys.iter().enumerate();
                let expected: Vec<usize> = numbers.filter(|(_, (key, _))| begins(path, key)).map(|(number, _)| number).collect();
                prop_assert_eq!(found(&whole, path), expected, "a copy stays as it was: {}", path);
            }
            prop_assert_eq!(nodes(&changed.root), nodes(&made.root), "what holds nothing is gone");
        }
    }

    #[test]
    fn the_longest_beginning_comes_first_however_many_there_are() {
        let mut trie = Trie::new(false);
        let path = "a".repeat(3 * FEW);
        for length in 0..=path.len() {
            put(&mut trie, &path[..length], length);
        }
        let found: Vec<usize> = trie.of(&path).flatten().copied().collect();
        let expected: Vec<usize> = (0..=path.len()).rev().collect();
        assert_eq!(found, expected);
    }
}
