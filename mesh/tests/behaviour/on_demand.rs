//! What a client that asks for single names is told, where the recordings are silent
//! (testdata/DEVIATIONS.md, 4 and 9), and in which order.

use std::collections::HashMap;
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, Node};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh::{Changed, Entry, Reply, Session};

use crate::shelf::{Shelf, entry};

fn pod(name: &str, node: &str, service: Option<&str>) -> Entry {
    Entry {
        node: Some(node.into()),
        services: service.into_iter().map(Arc::from).collect(),
        aliases: [Arc::from(format!("/ip-of-{name}"))].into(),
        ..entry(name, "1")
    }
}

fn service(name: &str) -> Entry {
    Entry {
        aliases: [Arc::from(format!("/vip-of-{name}"))].into(),
        ..entry(name, "1")
    }
}

fn request(subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

/// An on-demand stream of a client on node `here`, its first answer read.
fn on_demand(shelf: &Shelf) -> (Session, Reply) {
    use prost_types::value::Kind;
    let here = prost_types::Value {
        kind: Some(Kind::StringValue("here".to_owned())),
    };
    let metadata = prost_types::Struct {
        fields: [("NODE_NAME".to_owned(), here)].into(),
    };
    let mut session = Session::new();
    let first = DeltaDiscoveryRequest {
        node: Some(Node {
            metadata: Some(metadata),
            ..Default::default()
        }),
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..request(&["*"])
    };
    let reply = session.on_request(shelf, first).reply.unwrap();
    (session, reply)
}

fn push(session: &mut Session, shelf: &Shelf, names: &[&str]) -> Vec<Reply> {
    let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
    session.on_push(
        shelf,
        &[Changed {
            type_url: ADDRESS_TYPE,
            names: &names,
        }],
    )
}

fn set(reply: &Reply) -> Vec<&str> {
    reply.resources.iter().map(|entry| &*entry.name).collect()
}

#[test]
fn the_first_answer_is_what_runs_on_the_clients_node() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, pod("near", "here", None));
    shelf.set(ADDRESS_TYPE, pod("far", "there", None));
    let (_, reply) = on_demand(&shelf);
    assert_eq!(set(&reply), ["near"]);
    assert_eq!(reply.into_response().resources[0].aliases, ["/ip-of-near"]);
}

#[test]
fn an_endpoint_that_joins_a_service_asked_for_is_pushed() {
    for key in ["ns/web", "/vip-of-ns/web"] {
        let mut shelf = Shelf::default();
        shelf.set(ADDRESS_TYPE, service("ns/web"));
        let (mut session, _) = on_demand(&shelf);
        assert_eq!(
            set(&session.on_request(&shelf, request(&[key])).reply.unwrap()),
            ["ns/web"]
        );
        shelf.set(ADDRESS_TYPE, pod("joins", "there", Some("ns/web")));
        shelf.set(ADDRESS_TYPE, pod("other", "there", Some("ns/other")));
        let pushed = push(&mut session, &shelf, &["joins", "other"]);
        assert_eq!(
            pushed.iter().map(set).collect::<Vec<_>>(),
            [["joins"]],
            "asked by {key}"
        );
    }
}

#[test]
fn a_name_that_comes_into_being_is_pushed_with_its_endpoints() {
    let mut shelf = Shelf::default();
    let (mut session, _) = on_demand(&shelf);
    for key in ["ns/web", "/ip-of-lone"] {
        assert_eq!(
            session
                .on_request(&shelf, request(&[key]))
                .reply
                .unwrap()
                .removed,
            [Arc::from(key)]
        );
    }
    shelf.set(ADDRESS_TYPE, pod("before", "there", Some("ns/web")));
    assert_eq!(
        push(&mut session, &shelf, &["before"]),
        [],
        "nobody knows yet that it matters"
    );
    shelf.set(ADDRESS_TYPE, service("ns/web"));
    shelf.set(ADDRESS_TYPE, pod("lone", "there", None));
    let pushed = push(&mut session, &shelf, &["ns/web", "lone"]);
    assert_eq!(
        pushed.iter().map(set).collect::<Vec<_>>(),
        [["before", "lone", "ns/web"]]
    );
}

#[test]
fn what_was_sent_is_kept_up_to_date_and_its_end_is_told() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, pod("lone", "there", None));
    let (mut session, _) = on_demand(&shelf);
    let _ = session.on_request(&shelf, request(&["lone"]));
    shelf.remove(ADDRESS_TYPE, "lone");
    assert_eq!(
        push(&mut session, &shelf, &["lone"])[0].removed,
        [Arc::from("lone")]
    );
    assert_eq!(push(&mut session, &shelf, &["lone"]), [], "told once");
}

#[test]
fn what_was_asked_for_comes_again_after_it_was_gone() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, service("ns/web"));
    let (mut session, _) = on_demand(&shelf);
    let _ = session.on_request(&shelf, request(&["ns/web"]));
    shelf.remove(ADDRESS_TYPE, "ns/web");
    assert_eq!(push(&mut session, &shelf, &["ns/web"]).len(), 1);
    shelf.set(ADDRESS_TYPE, service("ns/web"));
    assert_eq!(set(&push(&mut session, &shelf, &["ns/web"])[0]), ["ns/web"]);
}

#[test]
fn names_in_an_ack_count_even_if_a_push_crossed_it() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, pod("lone", "there", None));
    let (mut session, first) = on_demand(&shelf);
    shelf.set(ADDRESS_TYPE, pod("near", "here", None));
    let crossing = push(&mut session, &shelf, &["near"]);
    assert_ne!(crossing[0].nonce, first.nonce);
    let ack = DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        ..request(&["lone"])
    };
    assert_eq!(
        set(&session.on_request(&shelf, ack).reply.unwrap()),
        ["lone"]
    );
}

#[test]
fn a_refusal_is_reported_and_not_answered() {
    let shelf = Shelf::default();
    let (mut session, first) = on_demand(&shelf);
    let error = api::discovery::ErrorDetail {
        code: 3,
        message: "pod: field uid is missing".to_owned(),
        ..Default::default()
    };
    let nack = DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        error_detail: Some(error),
        ..request(&[])
    };
    let answer = session.on_request(&shelf, nack);
    assert_eq!(answer.reply, None);
    assert_eq!(answer.nack.unwrap().message, "pod: field uid is missing");
}

#[test]
fn policies_come_before_and_go_after_the_addresses_that_name_them() {
    let mut shelf = Shelf::default();
    for name in ["old", "new"] {
        shelf.set(AUTHORIZATION_TYPE, entry(name, "1"));
    }
    shelf.set(ADDRESS_TYPE, pod("pod", "there", None));
    let mut session = Session::new();
    for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
        let first = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            ..Default::default()
        };
        assert!(session.on_request(&shelf, first).reply.is_some());
    }
    shelf.remove(AUTHORIZATION_TYPE, "old");
    let changed: HashMap<_, Vec<Arc<str>>> = [
        (ADDRESS_TYPE, vec!["pod".into()]),
        (AUTHORIZATION_TYPE, vec!["old".into(), "new".into()]),
    ]
    .into();
    let changed: Vec<_> = changed
        .iter()
        .map(|(type_url, names)| Changed { type_url, names })
        .collect();
    let told: Vec<_> = session
        .on_push(&shelf, &changed)
        .iter()
        .map(|reply| {
            (
                reply.type_url.to_string(),
                reply.resources.len(),
                reply.removed.len(),
            )
        })
        .collect();
    let expected = [
        (AUTHORIZATION_TYPE, 1, 0),
        (ADDRESS_TYPE, 1, 0),
        (AUTHORIZATION_TYPE, 0, 1),
    ];
    assert_eq!(
        told,
        expected.map(|(type_url, set, removed)| (type_url.to_owned(), set, removed))
    );
}

fn unsubscribe(session: &mut Session, shelf: &Shelf, names: &[&str]) {
    let request = DeltaDiscoveryRequest {
        resource_names_unsubscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..request(&[])
    };
    assert_eq!(session.on_request(shelf, request).reply, None);
}

#[test]
fn an_address_in_a_range_brings_the_service_that_has_the_range() {
    for (range, inside, outside) in [
        ("net/10.1.2.0/24", "net/10.1.2.7", "net/10.1.3.7"),
        ("/fd00:1::/32", "/fd00:1::7", "/fd00:2::7"),
        ("/0.0.0.0/0", "/192.0.2.1", "net/192.0.2.1"),
    ] {
        let wide = || Entry {
            aliases: [Arc::from(range)].into(),
            ..entry("ns/wide", "1")
        };
        let mut shelf = Shelf::default();
        shelf.set(ADDRESS_TYPE, wide());
        let (mut session, _) = on_demand(&shelf);
        let mut ask =
            |shelf: &Shelf, name| session.on_request(shelf, request(&[name])).reply.unwrap();
        assert_eq!(set(&ask(&shelf, inside)), ["ns/wide"]);
        let reply = ask(&shelf, outside);
        assert_eq!(
            (set(&reply).len(), reply.removed),
            (0, vec![outside.into()])
        );

        // And so does a service that comes later.
        let mut shelf = Shelf::default();
        let (mut session, _) = on_demand(&shelf);
        let _ = session.on_request(&shelf, request(&[inside]));
        shelf.set(ADDRESS_TYPE, wide());
        assert_eq!(
            set(&push(&mut session, &shelf, &["ns/wide"])[0]),
            ["ns/wide"]
        );
    }
}

#[test]
fn what_is_given_up_is_told_no_more_and_what_is_due_all_the_same_is() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, service("ns/web"));
    shelf.set(ADDRESS_TYPE, service("ns/kept"));
    shelf.set(ADDRESS_TYPE, pod("web-0", "there", Some("ns/web")));
    shelf.set(ADDRESS_TYPE, pod("kept-0", "there", Some("ns/kept")));
    shelf.set(ADDRESS_TYPE, pod("near", "here", None));
    let (mut session, _) = on_demand(&shelf);
    let _ = session.on_request(&shelf, request(&["/vip-of-ns/web", "/vip-of-ns/kept"]));
    unsubscribe(
        &mut session,
        &shelf,
        &["/vip-of-ns/web", "ns/web", "web-0", "kept-0", "near"],
    );
    let all = ["ns/web", "web-0", "kept-0", "near"];
    let told = push(&mut session, &shelf, &all);
    assert_eq!(set(&told[0]), ["kept-0", "near"]);
    for name in all {
        shelf.remove(ADDRESS_TYPE, name);
    }
    let told = push(&mut session, &shelf, &all);
    assert_eq!(told[0].removed, ["kept-0", "near"].map(Arc::from));
}

#[test]
fn one_request_is_answered_for_so_many_names_also_of_who_is_told_everything() {
    let shelf = Shelf::default();
    let mut session = Session::new();
    session.on_request(&shelf, request(&[]));
    let many: Vec<_> = (0..=mesh::session::MOST_ASKED)
        .map(|number| number.to_string())
        .collect();
    let many: Vec<_> = many.iter().map(|name| &**name).collect();
    let reply = session.on_request(&shelf, request(&many)).reply.unwrap();
    assert_eq!(reply.removed.len(), mesh::session::MOST_ASKED);
}

#[test]
fn who_asks_for_too_much_is_not_told_that_there_is_nobody() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, pod("lone", "there", None));
    let (mut session, _) = on_demand(&shelf);
    let many: Vec<_> = (0..mesh::session::MOST_ASKED)
        .map(|number| number.to_string())
        .collect();
    let many: Vec<_> = many.iter().map(|name| &**name).collect();
    assert_eq!(
        session
            .on_request(&shelf, request(&many))
            .reply
            .unwrap()
            .removed
            .len(),
        many.len()
    );
    let reply = session
        .on_request(&shelf, request(&["lone", "nobody"]))
        .reply
        .unwrap();
    assert_eq!((set(&reply).len(), reply.removed.len()), (0, 0));
    // Whoever makes room is answered.
    unsubscribe(&mut session, &shelf, &["0"]);
    assert_eq!(
        set(&session
            .on_request(&shelf, request(&["lone"]))
            .reply
            .unwrap()),
        ["lone"]
    );
}
