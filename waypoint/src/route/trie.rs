//! Things by the beginnings of paths.
//!
//! A radix tree: an edge is a piece of text, and a node stands for all the text down to it. What is found for a path lies
//! on one way from the root, so the cost is the path's length, however many paths there are.

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
    nodes: Vec<Node<T>>,
    /// Paths are compared without case; keys are in lower case then.
    fold: bool,
}

#[derive(Debug, Clone)]
struct Node<T> {
    /// Text between the node above and this one.
    edge: Box<[u8]>,
    /// Length of all the text down to here.
    depth: usize,
    /// By the first byte of their edges, in order.
    children: Vec<(u8, usize)>,
    /// The nearest node above that holds something.
    up: Option<usize>,
    held: Option<Box<Held<T>>>,
}

impl<T: Default> Trie<T> {
    pub(super) fn new(fold: bool) -> Self {
        Self {
            nodes: vec![Node::new(&[], 0)],
            fold,
        }
    }

    /// What is held for that beginning.
    pub(super) fn entry(&mut self, key: &str) -> &mut Held<T> {
        let lower;
        let mut rest = match self.fold {
            true => {
                lower = key.to_ascii_lowercase();
                lower.as_bytes()
            }
            false => key.as_bytes(),
        };
        let mut at = 0;
        while let Some(first) = rest.first() {
            let children = &self.nodes[at].children;
            match children.binary_search_by_key(first, |(byte, _)| *byte) {
                Err(place) => {
                    let depth = self.nodes[at].depth + rest.len();
                    let new = self.push(Node::new(rest, depth));
                    self.nodes[at].children.insert(place, (*first, new));
                    (at, rest) = (new, &[]);
                }
                Ok(place) => {
                    let child = children[place].1;
                    let edge = &self.nodes[child].edge;
                    let common = edge.iter().zip(rest).take_while(|(a, b)| a == b).count();
                    if common < edge.len() {
                        self.split(child, common);
                    }
                    (at, rest) = (child, &rest[common..]);
                }
            }
        }
        self.nodes[at].held.get_or_insert_default()
    }

    /// Cuts a node's edge: the upper part takes its place, the lower one is its child.
    fn split(&mut self, at: usize, common: usize) {
        let node = &mut self.nodes[at];
        let upper = Node::new(
            &node.edge[..common],
            node.depth - (node.edge.len() - common),
        );
        let mut lower = std::mem::replace(node, upper);
        lower.edge = lower.edge[common..].into();
        let first = lower.edge[0];
        let lower = self.push(lower);
        self.nodes[at].children.push((first, lower));
    }

    fn push(&mut self, node: Node<T>) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}

impl<T> Node<T> {
    fn new(edge: &[u8], depth: usize) -> Self {
        Self {
            edge: edge.into(),
            depth,
            children: Vec::new(),
            up: None,
            held: None,
        }
    }
}

impl<T> Trie<T> {
    /// The tree of other things, ready to be asked.
    pub(super) fn finish<U>(self, mut each: impl FnMut(T) -> U) -> Trie<U> {
        let nodes = self.nodes.into_iter().map(|node| Node {
            edge: node.edge,
            depth: node.depth,
            children: node.children,
            up: None,
            held: node.held.map(|held| {
                Box::new(Held {
                    exact: each(held.exact),
                    segments: each(held.segments),
                    characters: each(held.characters),
                })
            }),
        });
        let mut trie = Trie {
            nodes: nodes.collect(),
            fold: self.fold,
        };
        let mut open = vec![(0, None)];
        while let Some((at, up)) = open.pop() {
            let node = &mut trie.nodes[at];
            node.up = up;
            let up = node.held.is_some().then_some(at).or(up);
            open.extend(node.children.iter().map(|(_, child)| (*child, up)));
        }
        trie
    }

    /// All that is for this path, the longest beginning first.
    pub(super) fn of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a T> {
        let path = path.as_bytes();
        let deepest = self.deepest(path);
        let nodes = std::iter::successors(deepest, |node| Some(&self.nodes[node.up?]));
        nodes.flat_map(move |node| {
            let held = node.held.as_deref();
            let next = path.get(node.depth);
            let segment = matches!(next, None | Some(b'/'));
            let exact = held.filter(|_| next.is_none()).map(|held| &held.exact);
            let segments = held.filter(|_| segment).map(|held| &held.segments);
            let characters = held.map(|held| &held.characters);
            exact.into_iter().chain(segments).chain(characters)
        })
    }

    /// The last node on the path's way.
    fn deepest(&self, path: &[u8]) -> Option<&Node<T>> {
        let mut node = self.nodes.first()?;
        let fold = |byte: &u8| match self.fold {
            true => byte.to_ascii_lowercase(),
            false => *byte,
        };
        while let Some(first) = path.get(node.depth).map(fold) {
            let Ok(place) = node
                .children
                .binary_search_by_key(&first, |(byte, _)| *byte)
            else {
                break;
            };
            let child = &self.nodes[node.children[place].1];
            let Some(text) = path.get(node.depth..child.depth) else {
                break;
            };
            if !text.iter().map(fold).eq(child.edge.iter().copied()) {
                break;
            }
            node = child;
        }
        Some(node)
    }
}
