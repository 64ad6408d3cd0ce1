//! Responses in parts: seen and answered when they are whole, taken back when they never are.

use std::sync::Arc;

use api::discovery::{DeltaDiscoveryResponse, Node, Resource};
use api::workload as wire;
use prost::Message;

use super::*;
use crate::mesh::{Mesh, Writer};

/// A client without a stream: parts are put into it by hand.
struct Client {
    types: Types,
    mesh: Arc<Mesh>,
    writer: Writer,
    told: Vec<String>,
}

impl Client {
    fn new() -> Self {
        let (mesh, writer) = Mesh::new();
        Self {
            types: Types::new(&ClientConfig::new(Node::default())),
            mesh,
            writer,
            told: Vec::new(),
        }
    }

    fn part(&mut self, more: bool, response: DeltaDiscoveryResponse) -> Option<String> {
        let mut part = Part::from(response);
        part.more = more;
        let tell = &mut self.told;
        let mut events = |event: ClientEvent<'_>| tell.push(format!("{event:?}"));
        let mut apply = |update| self.writer.apply(update);
        let request = self.types.apply(part, &mut apply, &mut events)?;
        let said = request.error_detail.map(|detail| detail.message);
        Some(said.unwrap_or_default())
    }

    fn ends(&mut self) {
        self.types.withdraw(&mut |update| self.writer.apply(update));
    }

    fn known(&self) -> Vec<String> {
        let snapshot = self.mesh.load();
        let mut known: Vec<_> = snapshot
            .workloads()
            .map(|found| found.uid.to_string())
            .collect();
        known.sort();
        known
    }

    fn held(&self) -> Vec<String> {
        let of = |followed: &&Followed| followed.kind == Kind::Addresses;
        let addresses = self.types.followed.iter().find(of).unwrap();
        let held = addresses.subscription.held();
        let mut held: Vec<_> = held.map(|(name, _)| name.to_string()).collect();
        held.sort();
        held
    }
}

fn pods(names: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |name: &&str| {
        let workload = wire::Workload {
            uid: (*name).trim_start_matches("bad-").to_owned(),
            ..Default::default()
        };
        let address = wire::Address {
            r#type: Some(wire::address::Type::Workload(workload)),
        };
        Resource {
            name: (*name).to_owned(),
            version: "1".to_owned(),
            resource: Some(prost_types::Any {
                type_url: ADDRESS_TYPE.to_owned(),
                value: address.encode_to_vec(),
            }),
            aliases: Vec::new(),
        }
    };
    DeltaDiscoveryResponse {
        resources: names.iter().map(resource).collect(),
        ..Default::default()
    }
}

fn end(type_url: &str, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: "n".to_owned(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

/// A response in one part.
fn whole(name: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources: pods(&[name]).resources,
        ..end(ADDRESS_TYPE, &[])
    }
}

#[test]
fn parts_are_seen_and_answered_when_the_last_is_there() {
    let mut client = Client::new();
    client.part(false, whole("old"));
    let changes = client.mesh.changed();
    assert_eq!(client.part(true, pods(&["a", "bad-b"])), None);
    assert!(client.types.in_the_middle());
    assert_eq!(client.part(true, pods(&["c", "bad-d"])), None);
    assert_eq!(client.known(), ["old"]);
    let answer = client
        .part(false, end(ADDRESS_TYPE, &["old", "c"]))
        .unwrap();
    assert_eq!(
        answer,
        "bad-b: content is named b; bad-d: content is named d"
    );
    assert_eq!(client.known(), ["a"], "a removal counts last");
    assert_eq!(client.held(), ["a"]);
    assert_eq!(*changes.borrow(), 2, "one step, and one before it");
    assert_eq!(client.told.len(), 2, "one answer, and one before it");
    assert!(
        client.told[1].contains("set: 4, removed: 2"),
        "{}",
        client.told[1]
    );
    assert!(!client.types.in_the_middle());
}

#[test]
fn what_came_of_a_response_that_never_ends_is_taken_back() {
    let mut client = Client::new();
    client.part(false, whole("old"));
    client.part(true, pods(&["a", "old"]));
    client.ends();
    assert_eq!(
        (client.known(), client.held()),
        (vec!["old".to_owned()], vec!["old".to_owned()])
    );
    client.part(false, whole("b"));
    assert_eq!(
        client.known(),
        ["b", "old"],
        "and does not come with the next"
    );
    client.ends(); // in good order
    assert_eq!(client.known(), ["b", "old"]);
}

#[test]
fn parts_of_a_response_that_is_of_another_type_after_all_are_refused() {
    for (type_url, answer) in [
        (
            AUTHORIZATION_TYPE,
            Some(format!(
                "a: of type {ADDRESS_TYPE}, which was not asked for"
            )),
        ),
        ("type.of.nobody", None),
        ("", None),
    ] {
        let mut client = Client::new();
        client.part(true, pods(&["a"]));
        assert_eq!(client.part(false, end(type_url, &[])), answer);
        assert_eq!((client.known(), client.held()), (vec![], vec![]));
        client.part(false, whole("b"));
        assert_eq!(client.known(), ["b"]);
    }
}

#[test]
fn parts_without_a_type_are_refused_by_name() {
    let mut client = Client::new();
    let mut first = pods(&["a"]);
    first.resources[0].resource = None;
    client.part(true, first);
    client.part(true, pods(&["b"]));
    let answer = client.part(false, end(ADDRESS_TYPE, &[])).unwrap();
    assert_eq!(answer, "a: field resource is missing");
    assert_eq!(client.known(), ["b"]);
}
