//! Whatever is changed, pushed, delivered, refused, lost and reconnected (with what is held told
//! or not), in whatever order: when things calm down, the client holds what the server has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh::{Changed, Entry, ParseError, Payload, Rejected, Session, Subscription, Wish};
use proptest::prelude::*;

use crate::shelf::{Shelf, entry};

const TYPES: [&str; 2] = [AUTHORIZATION_TYPE, ADDRESS_TYPE];
const NAMES: [&str; 6] = ["pod-0", "pod-1", "pod-2", "pod-3", "ns/web", "ns/db"];

#[derive(Debug, Clone)]
enum Step {
    /// A resource gets that content; some contents are refused by the client.
    Set {
        type_at: usize,
        name_at: usize,
        content: u8,
    },
    Remove {
        type_at: usize,
        name_at: usize,
    },
    /// The server pushes what changed since it pushed last.
    Push,
    /// The next response reaches the client, which answers.
    DeliverResponse,
    /// The next request reaches the server, which may answer.
    DeliverRequest,
    /// The client names something (on demand).
    Want {
        name_at: usize,
        by_alias: bool,
    },
    /// Everything under way is lost; a new stream, on which what is held is told if it is short
    /// enough. A long first answer comes in two parts.
    Reconnect {
        longest: usize,
        parts: bool,
    },
    /// The answers to the opening are in: what they do not name is gone.
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (types, names) = (0..TYPES.len(), 0..NAMES.len());
    let step = prop_oneof![
        4 => (types.clone(), names.clone(), 0..12u8).prop_map(|(type_at, name_at, content)| Step::Set { type_at, name_at, content }),
        2 => (types, names.clone()).prop_map(|(type_at, name_at)| Step::Remove { type_at, name_at }),
        4 => Just(Step::Push),
        6 => Just(Step::DeliverResponse),
        6 => Just(Step::DeliverRequest),
        2 => (names, any::<bool>()).prop_map(|(name_at, by_alias)| Step::Want { name_at, by_alias }),
        1 => (prop_oneof![Just(0), 100..300usize, Just(usize::MAX)], any::<bool>())
            .prop_map(|(longest, parts)| Step::Reconnect { longest, parts }),
        1 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..200)
}

/// Odd pods are on the client's node; pods 0 and 2 are endpoints of ns/web while their content is
/// even.
fn resource(name: &str, content: u8) -> Entry {
    let pod: Option<u8> = name
        .strip_prefix("pod-")
        .map(|number| number.parse().unwrap());
    let serves_web = pod.is_some_and(|number| number % 2 == 0) && content.is_multiple_of(2);
    Entry {
        aliases: [Arc::from(format!("/ip-of-{name}"))].into(),
        node: pod.map(|number| {
            if number % 2 == 1 {
                "here".into()
            } else {
                "there".into()
            }
        }),
        services: serves_web
            .then(|| Arc::from("ns/web"))
            .into_iter()
            .collect(),
        ..entry(name, &content.to_string())
    }
}

fn refused(content: &str) -> bool {
    content.parse::<u8>().unwrap() % 5 == 4
}

struct World {
    shelf: Shelf,
    dirty: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
    session: Session,
    /// Responses, and whether they answer the opening.
    down: VecDeque<(DeltaDiscoveryResponse, bool)>,
    up: VecDeque<DeltaDiscoveryRequest>,
    subscriptions: [Subscription; 2],
    applied: [BTreeMap<Arc<str>, String>; 2],
    wanted: BTreeSet<String>,
    /// First requests, and parts of answers to them, that have not arrived.
    opening: usize,
    parts: bool,
}

impl World {
    fn new(wish: Wish) -> Self {
        let mut world = Self {
            shelf: Shelf::default(),
            dirty: BTreeMap::new(),
            session: Session::new(),
            down: VecDeque::new(),
            up: VecDeque::new(),
            subscriptions: [
                Subscription::new(AUTHORIZATION_TYPE, Wish::Everything),
                Subscription::new(ADDRESS_TYPE, wish),
            ],
            applied: Default::default(),
            wanted: BTreeSet::new(),
            opening: 0,
            parts: false,
        };
        world.reconnect(usize::MAX, false);
        world
    }

    fn reconnect(&mut self, longest: usize, parts: bool) {
        use prost_types::value::Kind;
        let here = prost_types::Value {
            kind: Some(Kind::StringValue("here".to_owned())),
        };
        let metadata = prost_types::Struct {
            fields: [("NODE_NAME".to_owned(), here)].into(),
        };
        let node = Node {
            metadata: Some(metadata),
            ..Default::default()
        };
        self.session = Session::new();
        self.down.clear();
        self.up = self
            .subscriptions
            .iter_mut()
            .map(|subscription| subscription.open(node.clone(), longest))
            .collect();
        self.opening = self.up.len();
        self.parts = parts;
    }

    fn take(&mut self, step: &Step, wish: Wish) {
        match *step {
            Step::Set {
                type_at,
                name_at,
                content,
            } => {
                self.shelf
                    .set(TYPES[type_at], resource(NAMES[name_at], content));
                self.dirty
                    .entry(TYPES[type_at])
                    .or_default()
                    .insert(NAMES[name_at].into());
            }
            Step::Remove { type_at, name_at } => {
                self.shelf.remove(TYPES[type_at], NAMES[name_at]);
                self.dirty
                    .entry(TYPES[type_at])
                    .or_default()
                    .insert(NAMES[name_at].into());
            }
            Step::Push => self.push(),
            Step::DeliverResponse => self.deliver_response(),
            Step::DeliverRequest => self.deliver_request(),
            Step::Want { name_at, by_alias } if wish == Wish::OnDemand => {
                let name = if by_alias {
                    format!("/ip-of-{}", NAMES[name_at])
                } else {
                    NAMES[name_at].to_owned()
                };
                self.up
                    .push_back(self.subscriptions[1].want([Arc::from(&*name)]));
                self.wanted.insert(name);
            }
            Step::Want { .. } => {}
            Step::Reconnect { longest, parts } => self.reconnect(longest, parts),
            Step::Settle => self.drop_doubtful(),
        }
    }

    fn push(&mut self) {
        let dirty: Vec<(&str, Vec<Arc<str>>)> = std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|(of, names)| (of, names.into_iter().collect()))
            .collect();
        let changed: Vec<_> = dirty
            .iter()
            .map(|(type_url, names)| Changed { type_url, names })
            .collect();
        let replies = self.session.on_push(&self.shelf, &changed);
        let responses = replies.into_iter().map(mesh::Reply::into_response);
        self.down
            .extend(responses.map(|response| (response, false)));
    }

    fn deliver_request(&mut self) {
        if let Some(request) = self.up.pop_front() {
            let opens = request.node.is_some();
            let reply = self.session.on_request(&self.shelf, request).reply;
            let Some(mut response) = reply.map(mesh::Reply::into_response) else {
                return;
            };
            if opens && self.parts {
                let rest = response.resources.split_off(response.resources.len() / 2);
                let first = DeltaDiscoveryResponse {
                    resources: std::mem::replace(&mut response.resources, rest),
                    ..response.clone()
                };
                self.down.push_back((first, true));
                self.opening += 1;
            }
            self.down.push_back((response, opens));
        }
    }

    fn deliver_response(&mut self) {
        let Some((response, opens)) = self.down.pop_front() else {
            return;
        };
        self.opening -= usize::from(opens);
        let at = TYPES
            .iter()
            .position(|known| *known == response.type_url)
            .unwrap();
        let (changes, pending) = self.subscriptions[at].receive::<api::workload::Address>(response);
        let mut rejected = Vec::new();
        for (name, payload) in changes.set {
            let Payload::Bytes(bytes) = payload else {
                panic!("responses carry bytes")
            };
            let content = String::from_utf8(bytes.into()).unwrap();
            if refused(&content) {
                rejected.push(Rejected {
                    name,
                    reason: ParseError::Missing("uid"),
                });
            } else {
                self.applied[at].insert(name, content);
            }
        }
        for name in changes.removed {
            self.applied[at].remove(&name);
        }
        self.up
            .push_back(self.subscriptions[at].conclude(pending, rejected).0);
    }

    fn drop_doubtful(&mut self) {
        if self.opening > 0 {
            return;
        }
        for (subscription, applied) in self.subscriptions.iter_mut().zip(&mut self.applied) {
            for name in subscription.drop_doubtful() {
                assert!(applied.remove(&name).is_some(), "{name} is held");
            }
        }
    }

    fn settle(&mut self) {
        self.push();
        while !self.up.is_empty() || !self.down.is_empty() {
            self.deliver_request();
            self.deliver_response();
        }
        self.drop_doubtful();
    }

    /// What the server has of a type.
    fn truth(&self, type_url: &str) -> BTreeMap<Arc<str>, Arc<Entry>> {
        self.shelf.0.get(type_url).cloned().unwrap_or_default()
    }

    /// Nothing held is stale, and `due` is held. A name whose content is refused may be held in
    /// an older version, as long as it exists.
    fn check(&self, at: usize, due: impl Fn(&Entry) -> bool) -> Result<(), TestCaseError> {
        let truth = self.truth(TYPES[at]);
        for (name, content) in &self.applied[at] {
            let now = truth.get(name).map(|entry| &*entry.version);
            prop_assert!(
                now.is_some_and(|now| now == content || refused(now)),
                "{} is held as {} and is {:?}",
                name,
                content,
                now
            );
        }
        for (name, entry) in truth
            .iter()
            .filter(|(_, entry)| !refused(&entry.version) && due(entry))
        {
            prop_assert_eq!(
                self.applied[at].get(name).map(|content| &**content),
                Some(&*entry.version),
                "{}",
                name
            );
        }
        let held: BTreeMap<_, _> = self.subscriptions[at]
            .held()
            .map(|(name, version)| (name.clone(), version))
            .collect();
        prop_assert_eq!(
            &held,
            &self.applied[at],
            "what is told on reconnect is what is applied"
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_wildcard_client_ends_with_what_the_server_has(steps in steps()) {
        let mut world = World::new(Wish::Everything);
        for step in &steps {
            world.take(step, Wish::Everything);
        }
        world.settle();
        world.check(0, |_| true)?;
        world.check(1, |_| true)?;
    }

    #[test]
    fn an_on_demand_client_ends_with_what_concerns_it(steps in steps()) {
        let mut world = World::new(Wish::OnDemand);
        for step in &steps {
            world.take(step, Wish::OnDemand);
        }
        world.settle();
        world.check(0, |_| true)?;
        let wanted = |name: &str| world.wanted.contains(name) || world.wanted.contains(&format!("/ip-of-{name}"));
        let web_exists = world.truth(ADDRESS_TYPE).contains_key("ns/web");
        world.check(1, |entry| {
            wanted(&entry.name)
                || entry.node.as_deref() == Some("here")
                || (web_exists && wanted("ns/web") && entry.services.iter().any(|service| **service == *"ns/web"))
        })?;
    }
}
