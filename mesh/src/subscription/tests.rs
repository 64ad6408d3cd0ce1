//! Of one end: what it holds, what it tells, what it refuses.

use std::collections::BTreeMap;

use api::discovery::{DeltaDiscoveryResponse, Resource};

use super::*;

fn response(resources: &[(&str, &str)]) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| Resource {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        resource: Some(prost_types::Any {
            type_url: api::ADDRESS_TYPE.to_owned(),
            value: Vec::new(),
        }),
        aliases: Vec::new(),
    };
    DeltaDiscoveryResponse {
        resources: resources.iter().map(resource).collect(),
        ..Default::default()
    }
}

fn take(subscription: &mut Subscription, resources: &[(&str, &str)], refused: &[&str]) {
    let (_, pending) = subscription.receive::<api::workload::Address>(response(resources));
    let refused = refused.iter().map(|name| Rejected {
        name: Arc::from(*name),
        reason: ParseError::Missing("uid"),
    });
    let _ = subscription.conclude(pending, refused.collect());
}

fn holding(resources: &[(&str, &str)]) -> Subscription {
    let mut subscription = Subscription::new(api::ADDRESS_TYPE, Wish::Everything);
    take(&mut subscription, resources, &[]);
    subscription
}

fn held(subscription: &Subscription) -> BTreeMap<String, String> {
    let held = subscription.held();
    held.map(|(name, version)| (name.to_string(), version))
        .collect()
}

#[test]
fn what_is_held_is_told_if_the_request_does_not_get_too_long() {
    let long = "n".repeat(300);
    let resources = [
        ("a", ""),
        ("b", "0"),
        ("c", "ffffffffffffffff"),
        (&*long, "FF"),
    ];
    let mut subscription = holding(&resources);
    let whole = subscription.open(Node::default(), usize::MAX);
    let length = whole.encoded_len();
    assert_eq!(whole.initial_resource_versions.len(), 4);
    assert_eq!(subscription.open(Node::default(), length), whole);
    assert_eq!(subscription.doubtful(), 0, "all of it was told");
    let bare = subscription.open(Node::default(), length - 1);
    assert_eq!(bare.initial_resource_versions.len(), 0);
    assert_eq!(subscription.doubtful(), 4);
    assert_eq!(held(&subscription).len(), 4, "and it is used as before");
    let _ = subscription.open(Node::default(), length);
    assert_eq!(subscription.drop_doubtful(), [], "a later server was told");
}

#[test]
fn what_was_not_told_is_gone_if_no_answer_names_it() {
    let mut subscription =
        holding(&["a", "b", "c", "empty", "gone", "removed"].map(|name| (name, "1")));
    let _ = subscription.open(Node::default(), 0);
    take(&mut subscription, &[("a", "1"), ("b", "2")], &["b"]);
    assert_eq!(subscription.doubtful(), 4, "the answer may have more parts");
    take(&mut subscription, &[("c", "2"), ("new", "1")], &[]);
    let mut last = response(&[("empty", "2")]);
    last.resources[0].resource = None;
    last.removed_resources = vec!["removed".to_owned()];
    let (_, pending) = subscription.receive::<api::workload::Address>(last);
    let _ = subscription.conclude(pending, Vec::new());
    assert_eq!(subscription.drop_doubtful(), [Arc::from("gone")]);
    let expected = [
        ("a", "1"),
        ("b", "1"),
        ("c", "2"),
        ("empty", "1"),
        ("new", "1"),
    ];
    let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
    assert_eq!(
        held(&subscription),
        expected.into(),
        "what was refused is there, and its last good version stays"
    );
}

#[test]
fn a_first_one_that_was_refused_is_told_without_a_version() {
    let mut subscription = Subscription::new(WAYPOINT_TYPE, Wish::Everything);
    let names = [("good", "1"), ("bad", "1"), ("gone", "1")];
    let as_resources = |names: &[(&str, &str)]| {
        let mut response = response(names);
        for resource in &mut response.resources {
            if let Some(content) = &mut resource.resource {
                content.type_url = WAYPOINT_TYPE.to_owned();
            }
        }
        response
    };
    let mut take = |names: &[(&str, &str)], refused: &[&str]| {
        let response = as_resources(names);
        let (_, pending) = subscription.receive::<api::waypoint::Resource>(response);
        let refused = refused.iter().map(|name| Rejected {
            name: Arc::from(*name),
            reason: ParseError::Missing("kind"),
        });
        let (answer, _) = subscription.conclude(pending, refused.collect());
        let told = subscription.open(Node::default(), usize::MAX);
        (answer, told)
    };
    let (answer, told) = take(&names, &["bad", "gone"]);
    let details = answer.error_detail.unwrap().details;
    assert_eq!(details.len(), 2);
    let refused = api::waypoint::Refused::decode(&*details[0].value).unwrap();
    assert_eq!(
        (&*refused.name, &*refused.reason),
        ("bad", "field kind is missing")
    );
    let versions = [("bad", ""), ("gone", ""), ("good", "1")];
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect()
    };
    let held: BTreeMap<_, _> = told.initial_resource_versions.clone().into_iter().collect();
    assert_eq!(held, pairs(&versions));
    let (_, told) = take(&[("bad", "2")], &[]);
    assert_eq!(told.initial_resource_versions["bad"], "2");
    assert_eq!(told.initial_resource_versions["gone"], "");
    let length = told.encoded_len();
    assert_eq!(subscription.open(Node::default(), length), told);
    let _ = subscription.open(Node::default(), length - 1);
    assert_eq!(subscription.doubtful(), 3);
    assert_eq!(subscription.drop_doubtful().len(), 3);
    let told = subscription.open(Node::default(), usize::MAX);
    assert!(told.initial_resource_versions.is_empty());
}

#[test]
fn a_nack_names_what_was_refused_and_stays_short() {
    let rejected = |n: usize| Rejected {
        name: format!("ns/{n}").into(),
        reason: ParseError::Missing("uid"),
    };
    let one = error_detail(api::ADDRESS_TYPE, &[rejected(1)]).unwrap();
    assert_eq!((one.code, &*one.message), (3, "ns/1: field uid is missing"));
    let many: Vec<_> = (0..1000).map(rejected).collect();
    let many = error_detail(api::ADDRESS_TYPE, &many).unwrap();
    assert!(
        many.message.ends_with("and 968 more") && many.message.len() < 4096,
        "{}",
        many.message
    );
}
