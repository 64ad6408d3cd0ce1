//! The client against a server on a real socket: refusals by name, streams that break, what is
//! told when it comes back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, WAYPOINT_TYPE, security, workload as wire};
use mesh::{Demand, Entry, Kind, Mesh, Session, Wish};
use tonic::Status;

use crate::harness::{Harness, pod, policy};
use crate::shelf::{Shelf, entry};

#[tokio::test]
async fn a_stream_that_breaks_costs_nothing_but_the_difference() {
    let mut shelf = Shelf::default();
    shelf.set(AUTHORIZATION_TYPE, policy("p"));
    shelf.set(ADDRESS_TYPE, pod("a", "1"));
    shelf.set(ADDRESS_TYPE, pod("b", "1"));
    shelf.set(
        ADDRESS_TYPE,
        Entry {
            name: "bad".into(),
            ..pod("not-bad", "1")
        },
    );
    let mut harness = Harness::start(Wish::Everything).await;
    let mut stream = harness.streams.recv().await.unwrap();

    let first = stream.serve(&shelf).await;
    assert_eq!(
        (&*first.type_url, first.node.unwrap().id),
        (AUTHORIZATION_TYPE, "ztunnel~me".to_owned())
    );
    assert_eq!(stream.serve(&shelf).await.type_url, ADDRESS_TYPE);
    assert_eq!(stream.serve(&shelf).await.error_detail, None);
    let nack = stream.serve(&shelf).await;
    assert_eq!(
        nack.error_detail.unwrap().message,
        "bad: content is named not-bad"
    );
    assert_eq!(harness.told().await, "connected");
    assert_eq!(harness.told().await, "Authorization +1 -0 []");
    assert_eq!(harness.told().await, r#"Address +3 -0 ["bad"]"#);
    assert_eq!(harness.pods(), ["a:1", "b:1"], "the others are applied");

    stream
        .responses
        .send(Err(Status::unavailable("gone for a moment")))
        .await
        .unwrap();
    drop(stream);
    assert_eq!(
        harness.told().await,
        r#"disconnected Some("Unavailable: gone for a moment")"#
    );
    assert_eq!(harness.pods(), ["a:1", "b:1"], "nothing is forgotten");
    shelf.remove(ADDRESS_TYPE, "a");
    shelf.set(ADDRESS_TYPE, pod("c", "1"));
    shelf.set(ADDRESS_TYPE, pod("bad", "2"));

    let mut stream = harness.streams.recv().await.unwrap();
    let policies = stream.serve(&shelf).await;
    assert_eq!(policies.initial_resource_versions.len(), 1);
    let addresses = stream.serve(&shelf).await;
    let mut held: Vec<_> = addresses.initial_resource_versions.into_keys().collect();
    held.sort();
    assert_eq!(held, ["a", "b"], "what was refused is not held");
    assert_eq!(harness.told().await, "connected");
    assert_eq!(
        harness.told().await,
        "Authorization +0 -0 []",
        "an empty answer is an answer"
    );
    assert_eq!(harness.told().await, "Address +2 -1 []");
    assert_eq!(harness.pods(), ["b:1", "bad:2", "c:1"]);

    shelf.set(ADDRESS_TYPE, pod("b", "2"));
    stream.push(&shelf, ADDRESS_TYPE, &["b"]).await;
    assert_eq!(harness.told().await, "Address +1 -0 []");
    assert_eq!(harness.pods(), ["b:2", "bad:2", "c:1"]);

    harness.cancel.cancel();
    harness.client.await.unwrap();
}

#[tokio::test]
async fn a_server_that_closes_in_good_order_is_asked_again() {
    let shelf = Shelf::default();
    let mut harness = Harness::start(Wish::Everything).await;
    for _ in 0..3 {
        let mut stream = harness.streams.recv().await.unwrap();
        stream.serve(&shelf).await;
        assert_eq!(harness.told().await, "connected");
        assert_eq!(harness.told().await, "Authorization +0 -0 []");
        drop(stream);
        assert_eq!(harness.told().await, "disconnected None");
    }
}

#[tokio::test]
async fn a_name_demanded_is_asked_for_and_again_on_the_next_stream() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, pod("far", "1"));
    let mut harness = Harness::start(Wish::OnDemand).await;
    let mut stream = harness.streams.recv().await.unwrap();
    stream.serve(&shelf).await;
    let first = stream.serve(&shelf).await;
    assert_eq!(
        (
            first.resource_names_subscribe,
            first.resource_names_unsubscribe
        ),
        (vec!["*".into()], vec!["*".into()])
    );
    for told in ["connected", "Authorization +0 -0 []", "Address +0 -0 []"] {
        assert_eq!(harness.told().await, told);
    }
    let far = Demand::Want("/ip-of-far".into());
    harness.demands.send(far).await.unwrap();
    let mut asked = Vec::new();
    while asked.is_empty() {
        asked = stream.serve(&shelf).await.resource_names_subscribe; // acknowledgements come before it
    }
    assert_eq!(asked, ["/ip-of-far"]);
    assert_eq!(harness.told().await, "Address +1 -0 []");
    assert_eq!(harness.pods(), ["far:1"]);

    drop(stream);
    let mut stream = harness.streams.recv().await.unwrap();
    stream.serve(&shelf).await;
    assert_eq!(
        stream.serve(&shelf).await.resource_names_subscribe,
        ["*", "/ip-of-far"]
    );
}

#[tokio::test]
async fn what_is_forgotten_is_held_no_more_and_what_is_asked_again_is_given_up_first() {
    let mut shelf = Shelf::default();
    shelf.set(ADDRESS_TYPE, pod("far", "1"));
    let mut harness = Harness::start(Wish::OnDemand).await;
    let mut stream = harness.streams.recv().await.unwrap();
    stream.serve(&shelf).await;
    stream.serve(&shelf).await;
    let demands = harness.demands.clone();
    let demand = |demand: Demand| demands.send(demand);
    demand(Demand::Want("/ip-of-far".into())).await.unwrap();
    let mut named = async |shelf: &Shelf| loop {
        let request = stream.serve(shelf).await;
        let (subscribe, unsubscribe) = (
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        );
        if !subscribe.is_empty() || !unsubscribe.is_empty() {
            return (subscribe, unsubscribe); // no acknowledgement
        }
    };
    let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(named(&shelf).await, (names(&["/ip-of-far"]), names(&[])));

    // Istio's server would take all else back if a request did nothing but give up.
    demand(Demand::Again("/ip-of-far".into())).await.unwrap();
    let mark = |number: u32| format!("ambit-gives-up-{number}");
    assert_eq!(named(&shelf).await, (vec![mark(1)], names(&["/ip-of-far"])));
    assert_eq!(named(&shelf).await, (names(&["/ip-of-far"]), names(&[])));

    for told in [
        "connected",
        "Authorization +0 -0 []",
        "Address +0 -0 []",
        "Address +1 -0 []",
    ] {
        harness.hears(told).await;
    }
    for told in ["Address +0 -1 []", "Address +1 -0 []"] {
        harness.hears(told).await;
    }
    let forgotten: Box<[Arc<str>]> = ["/ip-of-far", "far"].map(Arc::from).into();
    demand(Demand::Forget(forgotten)).await.unwrap();
    let given_up = vec!["/ip-of-far".into(), "far".into(), mark(1)];
    assert_eq!(named(&shelf).await, (vec![mark(2)], given_up));

    drop(stream);
    let mut stream = harness.streams.recv().await.unwrap();
    stream.serve(&shelf).await;
    let first = stream.serve(&shelf).await;
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert!(first.initial_resource_versions.is_empty(), "{first:?}");
}

#[tokio::test]
async fn whoever_waits_for_a_pod_gets_it_when_it_arrives() {
    let (mesh, mut writer) = Mesh::new();
    let waiting = {
        let mesh = mesh.clone();
        tokio::spawn(async move { mesh.wait_for_pod("ns", "web-0", "default", "n1").await })
    };
    let pod = |uid: &str, node: &str| wire::Workload {
        uid: uid.to_owned(),
        name: "web-0".to_owned(),
        namespace: "ns".to_owned(),
        node: node.to_owned(),
        ..Default::default()
    };
    // Another node's pod of the same name is not the one, and a wait that is given up leaves nothing.
    for (uid, node) in [("other", "n2"), ("this", "n1")] {
        let mut update = mesh::Update::default();
        update.set_workload(pod(uid, node));
        assert_eq!(writer.apply(update), []);
        tokio::task::yield_now().await;
    }
    assert_eq!(&*waiting.await.unwrap().uid, "this");
    let given_up = mesh.wait_for_pod("ns", "never", "default", "n1");
    assert!(
        tokio::time::timeout(Duration::from_millis(1), given_up)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn watchers_hear_of_policies_only_when_policies_may_have_changed() {
    let (mesh, mut writer) = Mesh::new();
    let (changed, policies) = (mesh.changed(), mesh.policies_changed());
    let counts = move || (*changed.borrow(), *policies.borrow());
    let mut workload = wire::Workload {
        uid: "uid".to_owned(),
        ..Default::default()
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut apply = |workload: &wire::Workload| {
        let mut update = mesh::Update::default();
        update.set_workload(workload.clone());
        assert_eq!(writer.apply(update), []);
        seen.lock().unwrap().push(counts());
    };
    apply(&workload); // new
    apply(&workload); // the same again
    workload.node = "n1".to_owned();
    apply(&workload); // nothing that concerns policies
    workload.authorization_policies = vec!["ns/p".to_owned()];
    apply(&workload); // another policy applies
    assert_eq!(*seen.lock().unwrap(), [(1, 0), (1, 0), (2, 0), (3, 1)]);
}

/// While it was away nobody judged its connections by what came meanwhile.
#[tokio::test]
async fn watchers_hear_of_a_workload_that_comes_back_to_policies_or_to_what_else_concerns_them() {
    let global = security::Authorization {
        name: "all".to_owned(),
        namespace: "istio-system".to_owned(),
        scope: security::Scope::Global.into(),
        ..Default::default()
    };
    let of_namespace = security::Authorization {
        name: "some".to_owned(),
        namespace: "ns".to_owned(),
        scope: security::Scope::Namespace.into(),
        ..Default::default()
    };
    let of_another = security::Authorization {
        namespace: "another".to_owned(),
        ..of_namespace.clone()
    };
    let plain = wire::Workload {
        uid: "uid".to_owned(),
        namespace: "ns".to_owned(),
        ..Default::default()
    };
    let says = |name: &str| wire::Workload {
        extensions: vec![wire::Extension {
            name: name.to_owned(),
            config: None,
        }],
        ..plain.clone()
    };
    let carried = says(api::UDP_EXTENSION);
    let cases = [
        (None, &plain, false),
        (Some(of_another), &plain, false),
        (Some(of_namespace), &plain, true),
        (Some(global), &plain, true),
        (None, &carried, true),
    ];
    // With others in the mesh, and as the only one.
    for others in [true, false] {
        for (policy, workload, heard) in &cases {
            let (mesh, mut writer) = Mesh::new();
            let policies = mesh.policies_changed();
            let mut before = mesh::Update::default();
            before.set_workload(plain.clone());
            if others {
                before.set_workload(wire::Workload {
                    uid: "other".to_owned(),
                    ..plain.clone()
                });
            }
            let mut gone = mesh::Update::default();
            gone.addresses.removed.push("uid".into());
            let mut meanwhile = mesh::Update::default();
            if let Some(policy) = policy {
                meanwhile.set_policy(policy.clone());
            }
            for update in [before, gone, meanwhile] {
                assert_eq!(writer.apply(update), []);
            }
            let count = *policies.borrow();
            let mut back = mesh::Update::default();
            back.set_workload((*workload).clone());
            assert_eq!(writer.apply(back), []);
            let told = *policies.borrow() > count;
            assert_eq!(told, *heard, "{others} {policy:?} {workload:?}");
        }
    }
}

#[tokio::test]
async fn a_waypoint_follows_addresses_and_resources_and_says_what_it_refuses() {
    let mut shelf = Shelf::default();
    let bad = || Entry {
        encoded: b"no resource".to_vec().into(),
        ..entry("shop/way/httproute/shop/web/0", "1")
    };
    shelf.set(WAYPOINT_TYPE, bad());
    let follow = |config: &mut mesh::ClientConfig| {
        config.follows = vec![Kind::Addresses, Kind::Resources];
        config.addresses = Wish::OnDemand;
    };
    let mut harness = Harness::with(follow).await;
    let mut stream = harness.streams.recv().await.unwrap();
    stream.session = Session::of_gateway("shop/way");
    assert_eq!(stream.serve(&shelf).await.type_url, ADDRESS_TYPE);
    assert_eq!(stream.serve(&shelf).await.type_url, WAYPOINT_TYPE);
    for told in ["connected", "Address +0 -0 []"] {
        harness.hears(told).await;
    }
    harness
        .hears(r#"Resource +1 -0 ["shop/way/httproute/shop/web/0"]"#)
        .await;
    stream.next().await; // the addresses' acknowledgement
    let refusal = stream.next().await;
    assert_eq!(refusal.type_url, WAYPOINT_TYPE);
    assert_eq!(refusal.error_detail.unwrap().details.len(), 1);

    // A name that is given up is taken back.
    let name = || Arc::<str>::from("/ip-of-far");
    harness.demands.send(Demand::Want(name())).await.unwrap();
    assert_eq!(
        stream.serve(&shelf).await.resource_names_subscribe,
        ["/ip-of-far"]
    );
    harness.hears("Address +0 -1 []").await;
    stream.next().await;
    harness.demands.send(Demand::Leave(name())).await.unwrap();
    assert_eq!(
        stream.serve(&shelf).await.resource_names_unsubscribe,
        ["/ip-of-far"]
    );

    // The next server hears of what was refused, and says that it is gone.
    shelf.remove(WAYPOINT_TYPE, "shop/way/httproute/shop/web/0");
    drop(stream);
    assert!(harness.told().await.starts_with("disconnected"));
    let mut stream = harness.streams.recv().await.unwrap();
    stream.session = Session::of_gateway("shop/way");
    let first = stream.serve(&shelf).await;
    assert_eq!(
        first.resource_names_subscribe,
        ["*"],
        "and not what was given up"
    );
    let held = stream.serve(&shelf).await.initial_resource_versions;
    assert_eq!(held["shop/way/httproute/shop/web/0"], "");
    for told in ["connected", "Address +0 -0 []", "Resource +0 -1 []"] {
        harness.hears(told).await;
    }
}
