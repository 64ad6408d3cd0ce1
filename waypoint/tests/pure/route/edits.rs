//! Edits of one service's rules, as they come from the control plane: what they change, and what they leave.

use std::sync::Arc;

use api::waypoint as wire;
use mesh::{Mesh, NamespacedHost, Payload, Update};
use prost::Message;
use waypoint::authenticate::{Http, KeySets};
use waypoint::compiled::{Compiler, Config};
use waypoint::state::{Keeper, State};
use wire::resource::Kind;
use wire::target::To;

use super::request::Request;
use super::wire::{Written, prefix, rule};

struct Said {
    keeper: Keeper<Compiler>,
    state: Arc<State<Config>>,
}

impl Said {
    fn new() -> Self {
        let (_, writer) = Mesh::new();
        let state = State::new(Config::default());
        let compiler = Compiler::new(KeySets::new(Arc::new(Http::new(None))));
        let keeper = Keeper::new("shop/way", state.clone(), writer, compiler);
        Self { keeper, state }
    }

    /// In one update: rules that are set, keys that are gone.
    fn update(&mut self, set: &[Written], removed: &[&str]) {
        let mut update = Update::default();
        for written in set {
            let resource = wire::Resource {
                key: key(&written.origin.name),
                origin: Some(written.origin.clone()),
                kind: Some(Kind::Route(written.route.clone())),
            };
            let name = format!("shop/way/{}", resource.key).into();
            let bytes = resource.encode_to_vec().into();
            update.resources.set.push((name, Payload::Bytes(bytes)));
        }
        let removed = removed.iter().map(|name| format!("shop/way/{}", key(name)));
        update.resources.removed.extend(removed.map(Arc::from));
        assert!(self.keeper.apply(update).is_empty());
    }

    /// The object whose rule is for a path at a port.
    fn at(&self, port: u16, path: &str) -> Option<String> {
        let config = self.state.load();
        let table = config.service(&web()).routes(port);
        let mut request = Request::to(path);
        request.port = port;
        let found = table.find(&request.asked())?;
        Some(found.rule.name.name.to_string())
    }
}

fn key(name: &str) -> String {
    format!("httproute/shop/{name}/0")
}

fn web() -> NamespacedHost {
    NamespacedHost::new("shop", "web.shop")
}

/// For a prefix of the paths of `web`, on one port; 0: all.
fn of(name: &str, port: u32, path: &str) -> Written {
    let mut written = rule(name, 0).when(prefix(path));
    let service = wire::ServiceRef {
        namespace: "shop".to_owned(),
        hostname: "web.shop".to_owned(),
        port,
    };
    written.route.parents = vec![wire::Target {
        to: Some(To::Service(service)),
    }];
    written
}

#[test]
fn a_rule_that_comes_goes_or_moves_is_seen_at_its_ports_and_no_others() {
    let mut said = Said::new();
    let some = |name: &str| Some(name.to_owned());
    said.update(&[of("all", 0, "/"), of("one", 80, "/one")], &[]);
    assert_eq!(said.at(80, "/one"), some("one"));
    assert_eq!(said.at(81, "/one"), some("all"));
    // It moves to another port, and another comes that is for all.
    said.update(&[of("one", 81, "/one"), of("two", 0, "/one/two")], &[]);
    assert_eq!(said.at(80, "/one"), some("all"));
    assert_eq!(said.at(81, "/one"), some("one"));
    assert_eq!(said.at(80, "/one/two"), some("two"));
    assert_eq!(said.at(81, "/one/two"), some("two"));
    // One is for another path, and what was for all is gone.
    said.update(&[of("one", 81, "/other")], &["all"]);
    assert_eq!(said.at(81, "/one"), None);
    assert_eq!(said.at(81, "/other"), some("one"));
    assert_eq!(said.at(80, "/one/two"), some("two"));
    said.update(&[], &["one", "two"]);
    assert_eq!(said.at(81, "/other"), None);
    let config = said.state.load();
    assert!(config.service(&web()).routes(81).is_empty());
}

#[test]
fn an_edit_leaves_all_other_rules_what_they_are() {
    let mut said = Said::new();
    let many: Vec<_> = (0..200)
        .map(|number| of(&format!("rule-{number}"), 80, &format!("/{number}")))
        .collect();
    said.update(&many, &[]);
    let before = said.state.load_full();
    said.update(&[of("rule-7", 80, "/seven")], &[]);
    let after = said.state.load_full();
    let rules = |config: &Config| {
        let rules = config.service(&web()).routes(80).rules();
        rules.cloned().collect::<Vec<_>>()
    };
    let (before, after) = (rules(&before), rules(&after));
    assert_eq!((before.len(), after.len()), (200, 200));
    let same = before
        .iter()
        .filter(|rule| after.iter().any(|other| Arc::ptr_eq(rule, other)));
    assert_eq!(same.count(), 199);
    assert_eq!(said.at(80, "/seven").as_deref(), Some("rule-7"));
    assert_eq!(said.at(80, "/7"), None);
}

/// Whoever lets go of it last takes it apart: not a thread with requests on it.
#[tokio::test(start_paused = true)]
async fn what_all_of_which_is_made_anew_is_kept_until_requests_have_let_go_of_it() {
    let mut said = Said::new();
    said.update(&[of("one", 80, "/one")], &[]);
    let before = Arc::downgrade(&said.state.load_full());
    let mut update = Update::default();
    let resource = wire::Resource {
        key: "gateway/shop/way".to_owned(),
        origin: None,
        kind: Some(Kind::Gateway(wire::Gateway::default())),
    };
    let bytes = resource.encode_to_vec().into();
    let name = format!("shop/way/{}", resource.key).into();
    update.resources.set.push((name, Payload::Bytes(bytes)));
    assert!(said.keeper.apply(update).is_empty());
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(before.upgrade().is_some());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(before.upgrade().is_none());
    assert_eq!(said.at(80, "/one").as_deref(), Some("one"));
}
