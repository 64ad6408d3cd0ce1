//! Of `waypoint::compiled`: how services are called, how often, and what is logged, as resources say it.

use std::sync::Arc;
use std::time::Instant;

use api::waypoint as wire;
use mesh::{Mesh, NamespacedHost, Payload, Rejected, Update};
use prost::Message;
use waypoint::authenticate::{Http, KeySets};
use waypoint::compiled::{Backend, Compiler, Config, NoSubset};
use waypoint::limit::Judged;
use waypoint::state::{Keeper, State};
use wire::resource::Kind;
use wire::target::To;

use crate::route::request::Request;

struct Said {
    keeper: Keeper<Compiler>,
    state: Arc<State<Config>>,
}

impl Said {
    fn new() -> Self {
        let (_, writer) = Mesh::new();
        let state = State::new(Config::default());
        let compiler = Compiler::new(KeySets::new(Arc::new(Http::new(None))));
        Self {
            keeper: Keeper::new("shop/way", state.clone(), writer, compiler),
            state,
        }
    }

    fn set(&mut self, key: &str, created: i64, kind: Kind) -> Vec<Rejected> {
        let mut parts = key.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let resource = wire::Resource {
            key: key.to_owned(),
            origin: Some(wire::Origin {
                kind: part(),
                namespace: part(),
                name: part(),
                rule: part(),
                created,
                index: 0,
            }),
            kind: Some(kind),
        };
        let mut update = Update::default();
        let bytes = resource.encode_to_vec().into();
        let name = format!("shop/way/{key}").into();
        update.resources.set.push((name, Payload::Bytes(bytes)));
        self.keeper.apply(update)
    }

    fn remove(&mut self, key: &str) {
        let mut update = Update::default();
        update
            .resources
            .removed
            .push(format!("shop/way/{key}").into());
        assert!(self.keeper.apply(update).is_empty());
    }

    fn backend(
        &self,
        port: u16,
        subset: &str,
        client: Option<&str>,
    ) -> Result<Arc<Backend>, NoSubset> {
        let towards = self.state.load().calls.towards(&web());
        towards.backend(port, subset, client)
    }

    fn requests(&self, port: u16, subset: &str, client: Option<&str>) -> Option<u32> {
        self.backend(port, subset, client)
            .unwrap()
            .gates
            .requests
            .limit()
    }
}

fn web() -> NamespacedHost {
    NamespacedHost::new("shop", "web.shop")
}

fn reference(port: u32) -> wire::ServiceRef {
    wire::ServiceRef {
        namespace: "shop".to_owned(),
        hostname: "web.shop".to_owned(),
        port,
    }
}

fn policy(port: u32, subset: &str, requests: u32) -> wire::BackendPolicy {
    wire::BackendPolicy {
        service: Some(reference(port)),
        subset: subset.to_owned(),
        limits: (requests > 0).then(|| wire::Limits {
            requests,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn subset(name: &str, workloads: &[&str]) -> Kind {
    Kind::Subset(wire::Subset {
        service: Some(reference(0)),
        name: name.to_owned(),
        workloads: workloads.iter().map(|uid| (*uid).to_owned()).collect(),
    })
}

#[test]
fn the_more_specific_policy_goes_before_field_by_field() {
    let mut said = Said::new();
    let mut general = policy(0, "", 1);
    general.proxy_protocol = 2;
    said.set(
        "destinationrule/shop/a/all",
        1,
        Kind::BackendPolicy(general),
    );
    said.set(
        "destinationrule/shop/a/port",
        1,
        Kind::BackendPolicy(policy(80, "", 2)),
    );
    said.set(
        "destinationrule/shop/a/v1",
        1,
        Kind::BackendPolicy(policy(0, "v1", 3)),
    );
    said.set(
        "destinationrule/shop/a/v1-port",
        1,
        Kind::BackendPolicy(policy(81, "v1", 4)),
    );
    let mut consumer = policy(0, "", 5);
    consumer.consumer_namespace = "front".to_owned();
    said.set("destinationrule/front/b", 1, Kind::BackendPolicy(consumer));
    said.set("subset/shop/a/v1", 1, subset("v1", &["one"]));
    for (port, of, client, expected) in [
        (99, "", None, 1),
        (80, "", None, 2),
        (80, "", Some("elsewhere"), 2),
        (80, "v1", None, 3),
        (81, "v1", None, 4),
        (80, "", Some("front"), 5),
    ] {
        assert_eq!(
            said.requests(port, of, client),
            Some(expected),
            "{port} {of} {client:?}"
        );
        assert_eq!(
            said.backend(port, of, client).unwrap().proxy_protocol,
            2,
            "said below, by nobody else"
        );
    }
    said.remove("destinationrule/shop/a/port");
    assert_eq!(said.requests(80, "", None), Some(1));
}

#[test]
fn of_two_that_say_the_same_the_older_wins() {
    let mut said = Said::new();
    said.set(
        "destinationrule/shop/young",
        20,
        Kind::BackendPolicy(policy(0, "", 7)),
    );
    said.set(
        "destinationrule/shop/old",
        10,
        Kind::BackendPolicy(policy(0, "", 3)),
    );
    assert_eq!(said.requests(80, "", None), Some(3));
    said.remove("destinationrule/shop/old");
    assert_eq!(said.requests(80, "", None), Some(7));
}

#[test]
fn a_subset_that_nobody_describes_is_refused() {
    let mut said = Said::new();
    assert!(said.backend(80, "", None).is_ok());
    assert_eq!(
        said.backend(80, "v1", None).unwrap_err(),
        NoSubset("v1".to_owned())
    );
    said.set("subset/shop/a/v1", 1, subset("v1", &[]));
    assert!(said.backend(80, "v1", None).is_ok());
}

#[test]
fn what_is_on_its_way_goes_on_counting_when_policies_come_change_and_go() {
    let mut said = Said::new();
    let kept = said
        .backend(80, "", None)
        .unwrap()
        .gates
        .requests
        .enter()
        .unwrap();
    let inside = |said: &Said| said.backend(80, "", None).unwrap().gates.requests.inside();
    said.set(
        "destinationrule/shop/a",
        1,
        Kind::BackendPolicy(policy(0, "", 1)),
    );
    assert_eq!(inside(&said), 1);
    assert!(
        said.backend(80, "", None)
            .unwrap()
            .gates
            .requests
            .enter()
            .is_none()
    );
    said.set(
        "destinationrule/shop/a",
        1,
        Kind::BackendPolicy(policy(0, "", 2)),
    );
    assert_eq!(inside(&said), 1);
    drop(kept);
    assert_eq!(inside(&said), 0);
}

#[test]
fn a_limit_that_is_withdrawn_limits_nobody_however_often_it_comes_and_goes() {
    let mut said = Said::new();
    // Called before anything is said of it, and again afterwards.
    assert_eq!(said.requests(80, "", None), None);
    for _ in 0..2 {
        said.set(
            "destinationrule/shop/a",
            1,
            Kind::BackendPolicy(policy(0, "", 1)),
        );
        assert_eq!(said.requests(80, "", None), Some(1));
        said.remove("destinationrule/shop/a");
        assert_eq!(said.requests(80, "", None), None);
    }
}

#[test]
fn who_waits_is_let_go_when_what_limits_him_or_his_subset_is_no_more() {
    let mut said = Said::new();
    said.set("subset/shop/a/v1", 1, subset("v1", &[]));
    said.set(
        "destinationrule/shop/a",
        1,
        Kind::BackendPolicy(policy(0, "", 1)),
    );
    let [whole, part] = ["", "v1"].map(|subset| said.backend(80, subset, None).unwrap());
    said.remove("subset/shop/a/v1");
    assert_eq!(whole.gates.requests.limit(), Some(1));
    assert_eq!(part.gates.requests.limit(), None);
    said.remove("destinationrule/shop/a");
    assert_eq!(whole.gates.requests.limit(), None);
}

#[test]
fn what_did_not_change_is_the_same_and_is_asked_for_once() {
    let mut said = Said::new();
    said.set(
        "destinationrule/shop/a",
        1,
        Kind::BackendPolicy(policy(0, "", 1)),
    );
    let one = said.backend(80, "", None).unwrap();
    assert!(Arc::ptr_eq(&one, &said.backend(80, "", None).unwrap()));
    said.set(
        "destinationrule/shop/b/port",
        1,
        Kind::BackendPolicy(policy(81, "", 2)),
    );
    assert!(Arc::ptr_eq(&one, &said.backend(80, "", None).unwrap()));
}

#[test]
fn a_policy_that_cannot_be_understood_is_refused_and_closes_what_it_is_for() {
    let bad = |name: &str| {
        Kind::BackendPolicy(wire::BackendPolicy {
            load_balancer: Some(wire::LoadBalancer {
                hash: Some(wire::ConsistentHash {
                    key: Some(wire::consistent_hash::Key::Header(name.to_owned())),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..policy(0, "", 0)
        })
    };
    let mut said = Said::new();
    let refused = said.set("destinationrule/shop/a", 1, bad("no header"));
    assert_eq!(refused.len(), 1);
    assert!(said.backend(80, "", None).unwrap().broken.is_some());
    assert!(
        said.set("destinationrule/shop/a", 1, bad("x-user"))
            .is_empty()
    );
    assert_eq!(said.backend(80, "", None).unwrap().broken, None);
    assert_eq!(
        said.set("destinationrule/shop/a", 1, bad("no header"))
            .len(),
        1
    );
    assert_eq!(
        said.backend(80, "", None).unwrap().broken,
        None,
        "the last good one stays"
    );
}

fn limit(to: To, requests: u64) -> wire::RateLimit {
    wire::RateLimit {
        targets: vec![wire::Target { to: Some(to) }],
        requests,
        // So long that none is given back while a test runs.
        window: 3_600_000,
        ..Default::default()
    }
}

fn passing(said: &Said, rule: Option<&waypoint::route::Name>, times: usize) -> usize {
    let config = said.state.load();
    let request = Request::to("/");
    let limiter = config.service(&web()).limits.of(rule);
    let judge = |_: &usize| {
        matches!(
            limiter.judge(&request.asked(), Instant::now()),
            Judged::Pass(_)
        )
    };
    (0..times).filter(judge).count()
}

#[test]
fn limits_of_a_service_and_of_one_of_its_routes() {
    let mut said = Said::new();
    let route = wire::Route {
        parents: vec![wire::Target {
            to: Some(To::Service(reference(0))),
        }],
        ..Default::default()
    };
    said.set("httproute/shop/web/0", 1, Kind::Route(route));
    said.set(
        "ratelimitpolicy/shop/all",
        1,
        Kind::RateLimit(limit(To::Service(reference(0)), 10)),
    );
    let narrow = limit(To::Route("httproute/shop/web".to_owned()), 3);
    said.set("ratelimitpolicy/shop/one", 1, Kind::RateLimit(narrow));
    let name = waypoint::route::Name {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "web".into(),
        rule: "0".into(),
    };
    assert_eq!(passing(&said, Some(&name), 20), 3);
    assert_eq!(
        passing(&said, None, 20),
        7,
        "three of the ten passed by the route"
    );
    said.set(
        "authorizationpolicy/shop/x",
        1,
        Kind::Authorization(wire::Authorization {
            targets: vec![wire::Target {
                to: Some(To::Service(reference(0))),
            }],
            ..Default::default()
        }),
    );
    assert_eq!(
        passing(&said, None, 20),
        0,
        "what else is said of the service fills no bucket"
    );
}

#[test]
fn limits_of_a_service_are_counted_once_whatever_came_first() {
    let service = || {
        vec![wire::Target {
            to: Some(To::Service(reference(0))),
        }]
    };
    let all = limit(To::Service(reference(0)), 10);
    let route = |name: &str| {
        let rule = wire::Route {
            parents: service(),
            ..Default::default()
        };
        let narrow = limit(To::Route(format!("httproute/shop/{name}")), 3);
        let key = format!("httproute/shop/{name}/0");
        [
            (
                format!("ratelimitpolicy/shop/{name}"),
                Kind::RateLimit(narrow),
            ),
            (key, Kind::Route(rule)),
        ]
    };
    let all = [("ratelimitpolicy/shop/all".to_owned(), Kind::RateLimit(all))];
    let [one, other] = [route("one"), route("other")];
    let orders = [
        [&all[..], &one, &other].concat(),
        [&one[..], &other, &all].concat(),
        [&one[..], &all, &other].concat(),
    ];
    for (number, order) in orders.into_iter().enumerate() {
        let mut said = Said::new();
        for (key, kind) in order {
            assert!(said.set(&key, 1, kind).is_empty());
        }
        let named = |name: &str| waypoint::route::Name {
            kind: "HTTPRoute".into(),
            namespace: "shop".into(),
            name: name.into(),
            rule: "0".into(),
        };
        let of_routes = ["one", "other"].map(|name| passing(&said, Some(&named(name)), 20));
        assert_eq!(of_routes, [3, 3], "{number}");
        assert_eq!(
            passing(&said, None, 20),
            4,
            "six of ten passed by routes: {number}"
        );
        // A gateway that is another makes all services anew, and fills no bucket.
        said.set(
            "gateway/shop/way",
            1,
            Kind::Gateway(wire::Gateway::default()),
        );
        assert_eq!(passing(&said, None, 20), 0, "{number}");
    }
}

#[test]
fn a_limit_that_names_gateway_service_and_route_counts_each_request_once() {
    let mut said = Said::new();
    let route = wire::Route {
        parents: vec![wire::Target {
            to: Some(To::Service(reference(0))),
        }],
        ..Default::default()
    };
    said.set("httproute/shop/web/0", 1, Kind::Route(route));
    let mut all = limit(To::Service(reference(0)), 10);
    for to in [
        To::Route("httproute/shop/web".to_owned()),
        To::Gateway("shop/way".to_owned()),
    ] {
        all.targets.push(wire::Target { to: Some(to) });
    }
    let refused = said.set("ratelimitpolicy/shop/all", 1, Kind::RateLimit(all));
    assert!(refused.is_empty());
    // What makes all services anew lets counts go on.
    said.set(
        "gateway/shop/way",
        1,
        Kind::Gateway(wire::Gateway::default()),
    );
    let name = waypoint::route::Name {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "web".into(),
        rule: "0".into(),
    };
    assert_eq!(passing(&said, Some(&name), 20), 10);
    assert_eq!(passing(&said, None, 20), 0);
}

#[test]
fn a_limit_that_cannot_be_understood_lets_all_pass_or_none_as_it_says() {
    for (fail_open, expected) in [(false, 0), (true, 5)] {
        let mut said = Said::new();
        let bad = wire::RateLimit {
            window: 0,
            fail_open,
            ..limit(To::Service(reference(0)), 1)
        };
        assert_eq!(
            said.set("ratelimitpolicy/shop/bad", 1, Kind::RateLimit(bad))
                .len(),
            1
        );
        assert_eq!(passing(&said, None, 5), expected);
    }
}

#[test]
fn who_is_not_known_or_not_understood_cannot_be_asked() {
    let provider = |service: Option<wire::ServiceRef>| {
        let authorizer = wire::Authorizer {
            service,
            ..Default::default()
        };
        Kind::Provider(wire::Provider {
            kind: Some(wire::provider::Kind::Authorizer(authorizer)),
        })
    };
    let mut said = Said::new();
    let known = |said: &Said| said.state.load().authorizers.of("provider/judge").is_ok();
    assert!(!known(&said));
    assert_eq!(said.set("provider/judge", 1, provider(None)).len(), 1);
    assert!(!known(&said));
    assert!(
        said.set("provider/judge", 1, provider(Some(reference(80))))
            .is_empty()
    );
    assert!(known(&said));
    // The last good one stays.
    assert_eq!(said.set("provider/judge", 1, provider(None)).len(), 1);
    assert!(known(&said));
    said.remove("provider/judge");
    assert!(!known(&said));
}

#[test]
fn who_must_see_requests_stands_in_the_way_of_what_is_none_at_each_port_of_his() {
    let processing = |to: To, fail_open: bool, headers: bool| {
        Kind::Processing(wire::Processing {
            targets: vec![wire::Target { to: Some(to) }],
            processor: Some(wire::Processor {
                service: Some(reference(90)),
                request_headers: headers,
                fail_open,
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let must = |said: &Said, port: u16| {
        let config = said.state.load();
        let name = config.service(&web()).must_see(port, None);
        name.map(|name| name.to_string())
    };
    let (all, one) = ("externalprocessor/shop/all", "externalprocessor/shop/one");
    let service = || To::Service(reference(0));
    let mut said = Said::new();
    assert_eq!(must(&said, 80), None);
    for (fail_open, headers, expected) in [
        (false, true, Some(all)),
        (true, true, None),
        (false, false, None),
    ] {
        said.set(all, 1, processing(service(), fail_open, headers));
        let expected = expected.map(str::to_owned);
        assert_eq!(must(&said, 99), expected, "{fail_open} {headers}");
    }
    said.remove(all);

    // Of a route of one port only, and who is asked by a filter of it.
    let route = |filter: Option<wire::filter::Filter>| {
        Kind::Route(wire::Route {
            parents: vec![wire::Target {
                to: Some(To::Service(reference(80))),
            }],
            filters: vec![wire::Filter { filter }],
            ..Default::default()
        })
    };
    let ask = wire::filter::Filter::Authorizer("provider/judge".to_owned());
    said.set("httproute/shop/web/0", 1, route(Some(ask)));
    assert_eq!(must(&said, 80).as_deref(), Some("provider/judge"));
    assert_eq!(must(&said, 99), None);
    let judge = |fail_open| {
        Kind::Provider(wire::Provider {
            kind: Some(wire::provider::Kind::Authorizer(wire::Authorizer {
                service: Some(reference(90)),
                fail_open,
                ..Default::default()
            })),
        })
    };
    said.set("provider/judge", 1, judge(true));
    assert_eq!(must(&said, 80), None, "it passes without him anyway");
    let to = To::Route("httproute/shop/web".to_owned());
    said.set(one, 1, processing(to, false, true));
    assert_eq!(must(&said, 80).as_deref(), Some(one));
    assert_eq!(must(&said, 99), None);
    said.remove(one);
    said.set("provider/judge", 1, judge(false));
    assert_eq!(must(&said, 80).as_deref(), Some("provider/judge"));
    said.remove("httproute/shop/web/0");
    assert_eq!(must(&said, 80), None, "the rule that asked him is gone");

    // A rule of some clients says nothing of what others send.
    let ask = wire::filter::Filter::Authorizer("provider/judge".to_owned());
    let clients = wire::Route {
        parents: vec![wire::Target {
            to: Some(To::Service(reference(80))),
        }],
        filters: vec![wire::Filter { filter: Some(ask) }],
        consumer_namespace: "front".to_owned(),
        ..Default::default()
    };
    said.set("httproute/front/web/0/consumer", 1, Kind::Route(clients));
    let config = said.state.load();
    for (namespace, expected) in [
        (Some("front"), Some("provider/judge")),
        (Some("shop"), None),
        (None, None),
    ] {
        let name = config.service(&web()).must_see(80, namespace);
        assert_eq!(name.map(|name| &**name), expected, "{namespace:?}");
    }
}
