//! What was said becomes what is seen: only what was touched is made anew, and it comes out as if all had been.

#[path = "state/touched.rs"]
mod touched;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::waypoint as wire;
use mesh::{
    Mesh, NamespacedHost, Payload, Rejected, Snapshot, Step, Tie, Update, service_of, ties,
};
use prost::Message;
use waypoint::state::{Behind, Compile, Keeper, Resources, State, Touched, View};

const GATEWAY: &str = "shop/way";

/// What a request to each service would see, in words.
type Seen = BTreeMap<NamespacedHost, String>;

/// Compiles into words; refuses what calls itself bad. Remembers what was touched.
#[derive(Debug, Default)]
struct Words(Arc<Mutex<Touched>>);

impl Compile for Words {
    type Config = Seen;

    fn check(&mut self, resource: &wire::Resource) -> Result<(), String> {
        match &resource.origin {
            Some(origin) if origin.kind == "Bad" => Err("bad".to_owned()),
            _ => Ok(()),
        }
    }

    fn compile(&mut self, before: &Seen, view: &View<'_>) -> Seen {
        view.touched.clone_into(&mut self.0.lock().unwrap());
        let all = services(view.resources, view.mesh);
        let word = |service: NamespacedHost| {
            let anew = view.touched.everything
                || view.touched.services.contains(&service)
                || view.touched.endpoints.contains(&service);
            let known = before.get(&service).filter(|_| !anew).cloned();
            let seen = known.unwrap_or_else(|| words(&service, view.resources, view.mesh));
            (service, seen)
        };
        all.into_iter().map(word).collect()
    }
}

fn services(resources: &Resources, mesh: &Snapshot) -> Vec<NamespacedHost> {
    let known = mesh.services().map(|service| service.key());
    resources.services().cloned().chain(known).collect()
}

/// Everything that matters to requests of a service.
fn words(service: &NamespacedHost, resources: &Resources, mesh: &Snapshot) -> String {
    let mut words = itself(service, mesh);
    for held in resources.of_service(service).chain(resources.everywhere()) {
        words += &format!("\n{} {} {:?}", held.key, held.good, held.resource);
        let route = held.key.rsplit_once('/').map_or("", |(route, _)| route);
        for policy in resources.of_route(route) {
            words += &format!("\n  policy {:?}", policy.resource);
        }
        ties(&held.resource, |tie| {
            if let Tie::Leads(to) = tie {
                let to = service_of(to);
                words += &format!("\n  leads {}", itself(&to, mesh));
                for policy in resources.towards(&to) {
                    words += &format!("\n    {:?}", policy.resource);
                }
            }
        });
    }
    for policy in resources.towards(service) {
        words += &format!("\ntowards {:?}", policy.resource);
    }
    let mut endpoints: Vec<_> = mesh
        .service(&service.namespace, &service.host)
        .map(|service| {
            mesh.endpoints(service)
                .map(|it| it.uid.to_string())
                .collect()
        })
        .unwrap_or_default();
    endpoints.sort();
    words + &format!("\nendpoints {endpoints:?}")
}

fn itself(service: &NamespacedHost, mesh: &Snapshot) -> String {
    let found = mesh.service(&service.namespace, &service.host);
    format!("{service} {:?}", found.map(|service| &service.ports))
}

struct Proxy {
    state: Arc<State<Seen>>,
    mesh: Arc<Mesh>,
    keeper: Keeper<Words>,
    touched: Arc<Mutex<Touched>>,
}

impl Proxy {
    fn new() -> Self {
        let (mesh, writer) = Mesh::new();
        let state = State::new(Seen::new());
        let touched = Arc::<Mutex<Touched>>::default();
        Self {
            keeper: Keeper::new(GATEWAY, state.clone(), writer, Words(touched.clone())),
            touched,
            state,
            mesh,
        }
    }

    fn set(&mut self, resources: &[wire::Resource]) -> Vec<Rejected> {
        let mut update = Update::default();
        for resource in resources {
            update.resources.set.push(named(resource));
        }
        self.keeper.apply(update)
    }

    fn remove(&mut self, key: &str) {
        let mut update = Update::default();
        update.resources.removed.push(name(key));
        assert_eq!(self.keeper.apply(update), []);
    }

    fn seen(&self, host: &str) -> String {
        let seen = self
            .state
            .load()
            .get(&NamespacedHost::new("shop", host))
            .cloned();
        seen.unwrap_or_default()
    }
}

fn name(key: &str) -> Arc<str> {
    format!("{GATEWAY}/{key}").into()
}

fn named(resource: &wire::Resource) -> (Arc<str>, Payload<wire::Resource>) {
    let encoded = resource.encode_to_vec().into();
    (name(&resource.key), Payload::Bytes(encoded))
}

fn reference(host: &str) -> wire::ServiceRef {
    wire::ServiceRef {
        namespace: "shop".to_owned(),
        hostname: host.to_owned(),
        port: 0,
    }
}

fn to(host: &str) -> wire::Target {
    wire::Target {
        to: Some(wire::target::To::Service(reference(host))),
    }
}

fn resource(key: &str, mark: &str, kind: wire::resource::Kind) -> wire::Resource {
    wire::Resource {
        key: key.to_owned(),
        origin: Some(wire::Origin {
            kind: mark.to_owned(),
            ..Default::default()
        }),
        kind: Some(kind),
    }
}

fn route(key: &str, mark: &str, parents: &[&str], backends: &[&str]) -> wire::Resource {
    let backend = |host: &&str| wire::Backend {
        to: Some(wire::backend::To::Service(reference(host))),
        weight: 1,
        ..Default::default()
    };
    let route = wire::Route {
        parents: parents.iter().map(|host| to(host)).collect(),
        backends: backends.iter().map(backend).collect(),
        ..Default::default()
    };
    resource(key, mark, wire::resource::Kind::Route(route))
}

fn policy(key: &str, mark: &str, target: wire::target::To) -> wire::Resource {
    let policy = wire::Authorization {
        targets: vec![wire::Target { to: Some(target) }],
        ..Default::default()
    };
    resource(key, mark, wire::resource::Kind::Authorization(policy))
}

#[test]
fn the_last_good_one_stays_and_a_first_bad_one_is_kept_as_such() {
    let mut proxy = Proxy::new();
    assert_eq!(
        proxy.set(&[route("httproute/shop/r/0", "good", &["web"], &[])]),
        []
    );
    let before = proxy.state.load_full();
    let refused = proxy.set(&[
        route("httproute/shop/r/0", "Bad", &["web"], &["other"]),
        route("httproute/shop/r/1", "Bad", &["api"], &[]),
    ]);
    let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "shop/way/httproute/shop/r/0: bad",
            "shop/way/httproute/shop/r/1: bad"
        ]
    );
    assert_eq!(
        proxy.seen("web"),
        before[&NamespacedHost::new("shop", "web")]
    );
    assert!(
        proxy.seen("api").contains("httproute/shop/r/1 false"),
        "it closes what it is for"
    );
    let said = proxy.state.said();
    let shown: Vec<_> = said.refused().map(|held| (&*held.key, held.good)).collect();
    assert_eq!(
        shown,
        [("httproute/shop/r/0", true), ("httproute/shop/r/1", false)]
    );

    assert_eq!(
        proxy.set(&[route("httproute/shop/r/0", "good", &["web"], &[])]),
        []
    );
    assert_eq!(
        proxy.set(&[route("httproute/shop/r/1", "good", &["api"], &[])]),
        []
    );
    assert_eq!(proxy.state.said().refused().count(), 0);
    assert!(proxy.seen("api").contains("httproute/shop/r/1 true"));
    proxy.remove("httproute/shop/r/1");
    assert_eq!(proxy.seen("api"), "");
}

#[test]
fn what_is_not_understood_is_refused_whatever_it_is() {
    let mut proxy = Proxy::new();
    let whole = |bytes: &[u8], key: &str| {
        let mut update = Update::default();
        let payload = Payload::Bytes(bytes.to_vec().into());
        update.resources.set.push((key.into(), payload));
        update
    };
    let good = route("httproute/shop/r/0", "good", &["web"], &[]).encode_to_vec();
    let later = [&good[..], &[0x98, 0x06, 1]].concat(); // field 99
    let empty = wire::Resource {
        key: "novelty/shop/r".to_owned(),
        ..Default::default()
    };
    for (bytes, key, expected) in [
        (
            &good[..],
            "shop/other/httproute/shop/r/0",
            "for another gateway than shop/way",
        ),
        (
            &good,
            "shop/way/httproute/shop/r/1",
            "content is named httproute/shop/r/0",
        ),
        (
            &later,
            "shop/way/httproute/shop/r/0",
            "field 99 of Resource is not known",
        ),
        (
            &empty.encode_to_vec(),
            "shop/way/novelty/shop/r",
            "a kind of resource that is not known",
        ),
        (&[0xff], "shop/way/httproute/shop/r/2", "undecodable"),
    ] {
        let refused = proxy.keeper.apply(whole(bytes, key));
        assert_eq!(refused.len(), 1, "{key}");
        let reason = refused[0].reason.to_string();
        assert!(reason.contains(expected), "{key}: {reason}");
    }
}

#[test]
fn a_policy_that_cannot_be_decoded_closes_everything() {
    let mut proxy = Proxy::new();
    proxy.set(&[route("httproute/shop/r/0", "good", &["web"], &[])]);
    let mut update = Update::default();
    let key = name("authorizationpolicy/shop/strict");
    let payload = Payload::Bytes(vec![0xff].into());
    update.resources.set.push((key, payload));
    assert_eq!(proxy.keeper.apply(update).len(), 1);
    let said = proxy.state.said();
    let closed: Vec<_> = said.everywhere().collect();
    assert_eq!(closed.len(), 1);
    let Some(wire::resource::Kind::Authorization(policy)) = &closed[0].resource.kind else {
        panic!("{closed:?}");
    };
    assert!(
        !closed[0].good && policy.invalid.contains("undecodable"),
        "{policy:?}"
    );
    assert!(
        proxy
            .seen("web")
            .contains("authorizationpolicy/shop/strict false")
    );
}

#[test]
fn an_answer_in_parts_is_seen_whole_or_not_at_all() {
    let mut proxy = Proxy::new();
    proxy.set(&[route("httproute/shop/r/0", "good", &["web"], &[])]);
    let part = |key: &str, step| {
        let mut update = Update {
            step,
            ..Default::default()
        };
        update
            .resources
            .set
            .push(named(&route(key, "good", &["api"], &[])));
        update
    };
    let rounds = proxy.state.changed();
    let before = *rounds.borrow();
    proxy.keeper.apply(part("httproute/shop/r/1", Step::Part));
    assert_eq!(
        (proxy.seen("api"), *rounds.borrow()),
        (String::new(), before)
    );
    proxy.keeper.apply(Update::withdrawn());
    proxy.keeper.apply(part("httproute/shop/r/2", Step::Part));
    proxy
        .keeper
        .apply(part("httproute/shop/r/3", Step::Complete));
    let seen = proxy.seen("api");
    assert_eq!(*rounds.borrow(), before + 1);
    for (key, there) in [("r/1", false), ("r/2", true), ("r/3", true)] {
        assert_eq!(seen.contains(key), there, "{key}");
    }
    assert_eq!(
        proxy.set(&[route("httproute/shop/r/3", "good", &["api"], &[])]),
        []
    );
    assert_eq!(*rounds.borrow(), before + 1, "the same again is no news");
}

#[test]
fn one_more_service_behind_the_gateway_touches_nothing_but_that() {
    let mut proxy = Proxy::new();
    let gateway = |trust_domain: &str| {
        let gateway = wire::Gateway {
            trust_domain: trust_domain.to_owned(),
            ..Default::default()
        };
        let kind = wire::resource::Kind::Gateway(gateway);
        resource("gateway/shop/way", "good", kind)
    };
    let fronted = |host: &str| {
        let it = Some(wire::fronted::It::Service(reference(host)));
        let kind = wire::resource::Kind::Fronted(wire::Fronted { it, leaving: 0 });
        resource(&format!("fronted/service/shop/{host}"), "good", kind)
    };
    assert_eq!(proxy.set(&[gateway("a"), fronted("web")]), []);
    assert!(proxy.touched.lock().unwrap().everything);
    *proxy.touched.lock().unwrap() = Touched::default();
    assert_eq!(proxy.set(&[fronted("api")]), []);
    let only = Touched {
        behind: [Behind::Service(service_of(&reference("api")))].into(),
        ..Touched::default()
    };
    assert_eq!(*proxy.touched.lock().unwrap(), only);
    assert_eq!(proxy.set(&[gateway("b")]), []);
    assert!(proxy.touched.lock().unwrap().everything);
}
