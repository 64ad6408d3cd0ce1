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
