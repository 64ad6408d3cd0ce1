//! Which pods run where, as far as the certificate authority must know.
//!
//! Pods come and go one by one ([`Roster::set`], [`Roster::remove`]); readers hold an immutable
//! copy whose clone is a pointer, so a burst of certificate requests never waits for a change of
//! the configuration, nor the other way round.

use std::sync::Arc;

use imbl::HashMap;

/// A pod, by the facts that decide about identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`, empty when the file has none.
    pub uid: String,
    /// `spec.serviceAccountName`, `default` when it names none.
    pub service_account: String,
    /// `spec.nodeName`, empty before it is scheduled.
    pub node: String,
    /// The Gateway that it is a pod of, as its label says.
    pub gateway: Option<String>,
    /// Phase `Failed`: such a pod entitles nobody to its identity. (`Pending` and `Succeeded` do:
    /// a pod needs its certificate before it runs, and finishes connections after.)
    pub failed: bool,
}

/// All pods.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    pods: HashMap<Key, Arc<Pod>>,
    /// How many pods that did not fail a node has of an account.
    posts: HashMap<Post, u32>,
}

type Key = (Arc<str>, Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Post {
    node: String,
    namespace: String,
    service_account: String,
}

impl Roster {
    /// Adds a pod or replaces its earlier version.
    pub fn set(&mut self, pod: Pod) {
        self.remove(&pod.namespace, &pod.name);
        if let Some(post) = Post::of(&pod) {
            *self.posts.entry(post).or_insert(0) += 1;
        }
        let key = key(&pod.namespace, &pod.name);
        self.pods.insert(key, Arc::new(pod));
    }

    /// Forgets a pod; an unknown one is no matter.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(pod) = self.pods.remove(&key(namespace, name)) else {
            return;
        };
        let Some(post) = Post::of(&pod) else {
            return;
        };
        match self.posts.get(&post).copied() {
            Some(count @ 2..) => {
                self.posts.insert(post, count - 1);
            }
            _ => {
                self.posts.remove(&post);
            }
        }
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get(&key(namespace, name))
    }

    /// Whether `node` has a pod of this account whose phase is not `Failed`.
    pub fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.posts.contains_key(&Post {
            node: node.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// How many pods are known.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// No pod is known.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

impl Post {
    /// A pod that failed, or that no node has yet, fills none.
    fn of(pod: &Pod) -> Option<Self> {
        (!pod.failed && !pod.node.is_empty()).then(|| Self {
            node: pod.node.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
        })
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.into(), name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str) -> Pod {
        Pod {
            namespace: "alpha".into(),
            name: name.into(),
            uid: String::new(),
            service_account: "client".into(),
            node: node.into(),
            gateway: None,
            failed: false,
        }
    }

    #[test]
    fn an_account_runs_on_a_node_as_long_as_one_of_its_pods_does() {
        let mut roster = Roster::default();
        roster.set(pod("a", "node-1"));
        roster.set(pod("b", "node-1"));
        roster.set(pod("b", "node-1"));
        roster.remove("alpha", "a");
        assert!(roster.runs("node-1", "alpha", "client"));
        roster.set(pod("b", "node-2"));
        assert!(!roster.runs("node-1", "alpha", "client"));
        assert!(roster.runs("node-2", "alpha", "client"));
        roster.remove("alpha", "b");
        roster.remove("alpha", "b");
        assert!(roster.is_empty() && roster.posts.is_empty());
    }

    #[test]
    fn a_failed_pod_and_one_without_a_node_entitle_nobody() {
        let mut roster = Roster::default();
        roster.set(Pod {
            failed: true,
            ..pod("a", "node-1")
        });
        roster.set(pod("b", ""));
        assert!(!roster.runs("node-1", "alpha", "client"));
        assert!(!roster.runs("", "alpha", "client"));
        assert_eq!(roster.len(), 2);
    }
}
